/* The Compare page: the pinned baseline is a wish. */
window.dash_clientside.robosteer.pinned = (against) => {
  window.robosteer.wish({ against });
  return against;
};
window.robosteer.exports.results = () => {
  const rows = [];
  dash_ag_grid.getApi('results').forEachNodeAfterFilterAndSort((node) => rows.push(node.data));
  return { name: 'results', title: 'Results', meta: {}, rows };
};
