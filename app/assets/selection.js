/* The selection: which heads are chosen.
 *
 * One truth, the `selection` store: {run, heads, past, last, turn}.  Whatever chooses (a click on a map, a box, the
 * table, a button, a key) dispatches an action; `next` alone turns a state and an action into the next state; whatever
 * shows heads reads the store.  A page that is added later needs `robosteer.dispatch` and the store, nothing else.
 * No step of this asks the server.
 *
 * A head is written expert.L7H3, here and in the URL; expert.7.3 is understood when read.
 */
(function (rs) {
  const WRITTEN = /^([a-z][a-z0-9_]*)\.L?(\d+)[H.](\d+)$/;
  const UNDO_STEPS = 100;

  rs.parseHead = (text) => {
    const m = WRITTEN.exec(text.trim());
    return m ? { tower: m[1], layer: +m[2], head: +m[3] } : null;
  };
  rs.headId = (tower, layer, head) => `${tower}.L${layer}H${head}`;

  const order = (a, b) => {
    const p = rs.parseHead(a), q = rs.parseHead(b);
    return p.tower.localeCompare(q.tower) || p.layer - q.layer || p.head - q.head;
  };
  const same = (a, b) => a.length === b.length && a.every((id, i) => id === b[i]);

  /* Split written heads into those that can be chosen in this run and those that cannot (unknown or dead). */
  rs.sortOut = (written, run) => {
    const dead = new Set((run && run.dead) || []);
    const known = new Set(), left = [];
    for (const text of written) {
      const h = rs.parseHead(text), shape = h && run && run.towers[h.tower];
      const id = h && rs.headId(h.tower, h.layer, h.head);
      if (shape && h.head < (shape[h.layer] || 0) && !dead.has(id)) known.add(id);
      else left.push(text);
    }
    return { heads: [...known].sort(order), left };
  };

  /* The reducer.  Actions:
   *   toggle {heads}         each head changes sides
   *   box {heads}            adds them; when all are chosen already, takes them out
   *   within {heads, scope}  the part of the selection inside `scope` becomes `heads` (a table shows one scope)
   *   set {heads}            the selection becomes `heads`
   *   clear, undo
   */
  rs.next = (state, action) => {
    const now = new Set(state.heads);
    let past = state.past || [];
    switch (action.type) {
      case 'toggle':
        action.heads.forEach((id) => (now.has(id) ? now.delete(id) : now.add(id)));
        break;
      case 'box': {
        const all = action.heads.length > 0 && action.heads.every((id) => now.has(id));
        action.heads.forEach((id) => (all ? now.delete(id) : now.add(id)));
        break;
      }
      case 'within':
        action.scope.forEach((id) => now.delete(id));
        action.heads.forEach((id) => now.add(id));
        break;
      case 'set':
        now.clear();
        action.heads.forEach((id) => now.add(id));
        break;
      case 'clear':
        now.clear();
        break;
      case 'undo':
        if (!past.length) return { ...state, last: null, turn: state.turn + 1 };
        return { ...state, heads: past[past.length - 1], past: past.slice(0, -1), last: null, turn: state.turn + 1 };
      default:
        throw new Error(`unknown selection action ${action.type}`);
    }
    const heads = [...now].sort(order);
    if (!same(heads, state.heads)) past = [...past, state.heads].slice(-UNDO_STEPS);
    const last = action.type === 'toggle' && now.has(action.heads[0]) ? action.heads[0] : null;
    return { ...state, heads, past, last, turn: state.turn + 1 };
  };

  /* Actions wait in line until the reducer comes: two quick clicks may reach it at once, and none may be lost. */
  const waiting = [];
  let sent = 0;
  rs.dispatch = (action) => {
    waiting.push(action);
    dash_clientside.set_props('action', { data: ++sent });
  };

  const nothing = () => dash_clientside.no_update;
  let latest = null; // what the store will hold as soon as Dash has written it

  Object.assign(window.dash_clientside.robosteer, {
    reduce(_, run, stored, runs) {
      if (!stored) return nothing();
      let state = latest && latest.run === stored.run && latest.turn > stored.turn ? latest : stored;
      if (state.run !== run) {
        // the same policy has the same heads; another policy's heads of that name mean something else
        const kept = runs[run] && runs[state.run] && runs[run].policy === runs[state.run].policy;
        state = { run, heads: kept ? state.heads : [], past: [], last: null, turn: state.turn + 1 };
      } else if (!waiting.length) return nothing();
      while (waiting.length) state = rs.next(state, waiting.shift());
      return (latest = state);
    },
  });

  document.addEventListener('keydown', (e) => {
    const typing = e.target.closest && e.target.closest('input, textarea, [contenteditable=true]');
    if (!typing && (e.ctrlKey || e.metaKey) && !e.shiftKey && e.key.toLowerCase() === 'z') {
      e.preventDefault();
      rs.dispatch({ type: 'undo' });
    }
  });
})(window.robosteer);
