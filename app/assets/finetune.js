/* The Finetune page: which job is looked at is a wish, so that the address keeps it through reload and restart. */
Object.assign(window.dash_clientside.robosteer, {
  jobOpened(clicks) {
    const id = dash_clientside.callback_context.triggered_id;
    if (!id || !clicks.some(Boolean)) return dash_clientside.no_update;
    window.robosteer.wish({ job: id.job });
    return id.job;
  },
  jobActed(acted) {
    if (acted) window.robosteer.wish({ job: acted.job });
  },
});
