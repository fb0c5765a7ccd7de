/* Light and dark: Mantine switches itself; AG Grid and Plotly's figures follow here. */
(function (rs) {
  const root = document.documentElement;
  rs.scheme = () => (root.dataset.mantineColorScheme === 'dark' ? 'dark' : 'light');

  new MutationObserver(() => {
    document.body.dataset.agThemeMode = rs.scheme();
    if (window.dash_clientside.set_props) dash_clientside.set_props('scheme', { data: rs.scheme() });
  }).observe(root, { attributes: true, attributeFilter: ['data-mantine-color-scheme'] });
  document.body.dataset.agThemeMode = rs.scheme();

  Object.assign(window.dash_clientside.robosteer, {
    /* Figures whose colours all come from their template. */
    dress(scheme, themes) {
      const patch = () => {
        const p = new dash_clientside.Patch();
        p.assign(['layout', 'template'], themes[scheme].template);
        return p.build();
      };
      return dash_clientside.callback_context.outputs_list.map(patch);
    },
  });
})(window.robosteer);
