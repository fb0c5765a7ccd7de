/* The address: what is looked at is in the URL, so that a link shows a colleague the same.
 *
 *   ?run=..&method=..&tower=..&heads=expert.L7H3,expert.L2H0      or  &set=NAME, a saved set, for long selections
 *
 * `run`, `heads` and `set` are the shell's; every other key is a wish: {method, tower, factor, scale, head, episode, job,
 * ...}, kept in the store `view` and changed by `robosteer.wish({episode: 3})`.  A wish that cannot be met is no error.
 * Read once when the page has loaded, then written as things change.  Dash loads these files in alphabetical order;
 * this one is the first and makes the namespaces that all share.
 */
window.robosteer = {};
window.dash_clientside = window.dash_clientside || {};
window.dash_clientside.robosteer = {};
window.dashAgGridFunctions = window.dashAgGridFunctions || {};
window.dashAgGridComponentFunctions = window.dashAgGridComponentFunctions || {};

(function (rs) {
  const KEY = /^[a-z][a-z0-9_-]{0,30}$/, OURS = new Set(['run', 'heads', 'set']), LONGEST = 200;

  rs.readQuery = (search) => {
    const q = new URLSearchParams(search), view = {};
    for (const [key, value] of q) if (KEY.test(key) && !OURS.has(key) && value && value.length <= LONGEST) view[key] = value;
    return { run: q.get('run'), set: q.get('set'), view, heads: (q.get('heads') || '').split(',').filter(Boolean) };
  };

  rs.writeQuery = (run, view, heads, set) => {
    const parts = [];
    const put = (key, value) => value && parts.push(`${key}=${encodeURIComponent(value)}`);
    put('run', run);
    for (const [key, value] of Object.entries(view || {})) put(key, value);
    if (set) put('set', set);
    else if (heads.length) parts.push('heads=' + heads.join(','));
    return parts.length ? '?' + parts.join('&') : '';
  };

  /* Change what is wished for: {episode: 3, camera: null} sets one key and drops the other. */
  let wishes = {};
  rs.wish = (changes) => {
    const now = { ...wishes };
    for (const [key, value] of Object.entries(changes)) {
      if (value === null || value === undefined || value === '') delete now[key];
      else now[key] = String(value);
    }
    if (JSON.stringify(now) === JSON.stringify(wishes)) return;
    wishes = now;
    dash_clientside.set_props('view', { data: now });
  };
  rs.wishes = () => wishes;

  /* A saved set of the run, as written heads and as its file; null when there is none. */
  const savedSet = async (run, name) => {
    const answer = await fetch(`/raw/${encodeURIComponent(run)}/selections/${encodeURIComponent(name)}.json`);
    if (!answer.ok) return null;
    const file = await answer.json();
    return { file, policy: file.policy, heads: (file.heads || []).map((h) => rs.headId(h.tower, h.layer, h.head)) };
  };

  let started = false;
  const nothing = () => dash_clientside.no_update;

  Object.assign(window.dash_clientside.robosteer, {
    /* Once, when the page has loaded: what the URL asks for, as far as it exists. */
    async start(href, runs) {
      const no = nothing();
      if (started) return [no, no, no, no, no, no];
      started = true;
      const asked = rs.readQuery(new URL(href).search), names = Object.keys(runs), notices = [];
      let run = asked.run;
      if (run !== null && !(run in runs)) {
        notices.push(`The link asks for run “${run}”, which is not here` + (names.length ? `; this is “${names[0]}”.` : '.'));
        run = null;
      }
      if (run === null) run = names.find((name) => runs[name]) || names[0] || null;
      let written = asked.heads, name = null, by = { schema: 1, method: 'from a link' };
      if (asked.set && run && runs[run]) {
        const set = await savedSet(run, asked.set);
        if (!set) notices.push(`The link asks for the set “${asked.set}”, which run “${run}” does not have.`);
        else if (set.policy && set.policy !== runs[run].policy)
          notices.push(`The set “${asked.set}” is for policy ${set.policy}; this run's policy is ${runs[run].policy}.`);
        else [written, name, by] = [set.heads, asked.set, set.file];
      }
      const { heads, left } = rs.sortOut(written, runs[run]);
      if (left.length) {
        const shown = left.slice(0, 4).join(', ') + (left.length > 4 ? ', …' : '');
        notices.push(`${left.length} of the link's heads cannot be chosen in this run and were left out: ${shown}`);
      }
      if (heads.length) rs.chosenBy({ ...by, policy: runs[run].policy, heads: by.heads || heads.map(rs.parseHead) });
      wishes = asked.view;
      const state = { run, heads, past: [], future: [], last: null, turn: 0 };
      return [run, asked.view, state, notices, rs.scheme(), name && { run, heads, name }];
    },

    /* The address bar follows, without an entry in the browser's history for every click; links keep the query. */
    address(run, view, state, named, path, hrefs, ids) {
      const set = state && named && named.heads.join() === state.heads.join() && named.run === run ? named.name : null;
      const query = state ? rs.writeQuery(run, view, state.heads, set) : window.location.search;
      if (query !== window.location.search) history.replaceState(history.state, '', path + query);
      const names = ids.map((id) => (id.page === 'home' ? 'rs-brand' : id.page === path ? 'active' : ''));
      return [hrefs.map((href) => href.split('?')[0] + query), names];
    },
  });
})(window.robosteer);
