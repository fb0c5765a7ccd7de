/* The address: what is looked at is in the URL, so that a link shows a colleague the same.
 *
 *   ?run=..&method=..&tower=..&factor=..&heads=expert.L7H3,expert.L2H0
 *
 * Read once when the page has loaded, then written as things change.  Dash loads these files in alphabetical order;
 * this one is the first and makes the two namespaces that all share.
 */
window.robosteer = {};
window.dash_clientside = window.dash_clientside || {};
window.dash_clientside.robosteer = {};

(function (rs) {
  rs.readQuery = (search) => {
    const q = new URLSearchParams(search);
    const view = {};
    for (const key of ['method', 'tower', 'factor']) if (q.get(key)) view[key] = q.get(key);
    return { run: q.get('run'), view, heads: (q.get('heads') || '').split(',').filter(Boolean) };
  };

  rs.writeQuery = (run, view, heads) => {
    const parts = [];
    const put = (key, value) => value && parts.push(`${key}=${encodeURIComponent(value)}`);
    put('run', run);
    for (const key of ['method', 'tower', 'factor']) put(key, view && view[key]);
    if (heads.length) parts.push('heads=' + heads.join(','));
    return parts.length ? '?' + parts.join('&') : '';
  };

  let started = false;
  const nothing = () => dash_clientside.no_update;

  Object.assign(window.dash_clientside.robosteer, {
    /* Once, when the page has loaded: what the URL asks for, as far as it exists. */
    start(href, runs) {
      const no = nothing();
      if (started) return [no, no, no, no, no];
      started = true;
      const asked = rs.readQuery(new URL(href).search), names = Object.keys(runs), notices = [];
      let run = asked.run;
      if (run !== null && !(run in runs)) {
        notices.push(`The link asks for run “${run}”, which is not here` + (names.length ? `; this is “${names[0]}”.` : '.'));
        run = null;
      }
      if (run === null) run = names.find((name) => runs[name]) || names[0] || null;
      const { heads, left } = rs.sortOut(asked.heads, runs[run]);
      if (left.length) {
        const shown = left.slice(0, 4).join(', ') + (left.length > 4 ? ', …' : '');
        notices.push(`${left.length} of the link's heads cannot be chosen in this run and were left out: ${shown}`);
      }
      return [run, asked.view, { run, heads, past: [], last: null, turn: 0 }, notices, rs.scheme()];
    },

    viewed: (method, tower, factor) => ({ method, tower, factor }),

    /* The address bar follows, without an entry in the browser's history for every click; links keep the query. */
    address(run, view, state, path, hrefs, ids) {
      const query = state ? rs.writeQuery(run, view, state.heads) : window.location.search;
      if (query !== window.location.search) history.replaceState(history.state, '', path + query);
      const names = ids.map((id) => (id.page === 'home' ? 'rs-brand' : id.page === path ? 'active' : ''));
      return [hrefs.map((href) => href.split('?')[0] + query), names];
    },
  });
})(window.robosteer);
