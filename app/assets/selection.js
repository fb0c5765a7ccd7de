/* The selection: which heads are chosen.
 *
 * One truth, the `selection` store: {run, heads, past, future, last, turn}.  Whatever chooses (a click on a map, a box, the
 * table, a button, a key) dispatches an action; `next` alone turns a state and an action into the next state; whatever
 * shows heads reads the store.  A page that is added later needs `robosteer.dispatch` and the store, nothing else.
 * No step of this asks the server.
 *
 * What shows every head (figures, tables, the bar) is painted in the event that changed the selection; the store follows
 * after that paint, for whatever else hears it.  Dash takes a tenth of a second from one store to the next.
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
   *   add {heads}            the union of both
   *   clear, undo, redo
   */
  rs.next = (state, action) => {
    const now = new Set(state.heads);
    let past = state.past || [], future = state.future || [];
    const at = (heads, before, after) => ({ ...state, heads, past: before, future: after, last: null, turn: state.turn + 1 });
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
      case 'add':
        action.heads.forEach((id) => now.add(id));
        break;
      case 'clear':
        now.clear();
        break;
      case 'undo':
        if (!past.length) return at(state.heads, past, future);
        return at(past[past.length - 1], past.slice(0, -1), [state.heads, ...future]);
      case 'redo':
        if (!future.length) return at(state.heads, past, future);
        return at(future[0], [...past, state.heads], future.slice(1));
      default:
        throw new Error(`unknown selection action ${action.type}`);
    }
    const heads = [...now].sort(order);
    if (!same(heads, state.heads)) {
      past = [...past, state.heads].slice(-UNDO_STEPS);
      future = [];
    }
    const last = action.type === 'toggle' && now.has(action.heads[0]) ? action.heads[0] : null;
    return { ...state, heads, past, future, last, turn: state.turn + 1 };
  };

  /* The state that was reached last, which the store will hold in a moment; actions before the first state wait. */
  let latest = null, shown = null, due = false;
  const waiting = [];

  rs.dispatch = (action) => {
    if (!latest) return void waiting.push(action);
    latest = rs.next(latest, action);
    show();
    publish();
  };

  const show = () => {
    if (shown === latest) return;
    shown = latest;
    tell(latest.heads);
    rs.show(latest.heads, latest.last);
  };

  /* After the next paint; two quick clicks are one writing. */
  const publish = () => {
    if (due) return;
    due = true;
    requestAnimationFrame(() => setTimeout(() => {
      due = false;
      dash_clientside.set_props('selection', { data: latest });
    }, 0));
  };

  const tell = (heads) => {
    const n = heads.length, count = document.getElementById('count'), chosen = document.getElementById('chosen');
    if (!count) return;
    count.textContent = n === 1 ? '1 head selected' : `${n} heads selected`;
    chosen.textContent = n ? heads.join('  ') : 'Click a cell, draw a box, tick rows, or take the best.';
    chosen.classList.toggle('none', n === 0);
  };

  const nothing = () => dash_clientside.no_update;

  /* What a method, a file or a link has chosen as one, a heads file each: when the selection is saved, the server looks
   * for it among these (app/selections.py).  Clicks need not be followed for that, nor undo. */
  const ORIGINS = 12;
  let origins = [];
  rs.chosenBy = (set) => {
    if (!set) return;
    origins = [set, ...origins].slice(0, ORIGINS);
    dash_clientside.set_props('origins', { data: origins });
  };

  /* ---- the bar that shows it on every page (app/selecting.py) ---- */

  const LONG = 48; // heads that an address still carries one by one; longer sets are saved and carried by name
  let pause = null;
  const left = new Map(); // policy -> the selection that was left there

  Object.assign(window.dash_clientside.robosteer, {
    /* Another run, or the first state.  A selection belongs to its policy: runs of the same one share it, with its past;
     * another policy's heads of that name mean something else, and a run that cannot be read has none. */
    arrive(run, stored, runs) {
      if (!latest) latest = stored;
      if (!latest) return nothing();
      if (latest.run !== run) {
        const policy = (name) => runs[name] && runs[name].policy;
        if (policy(latest.run)) left.set(policy(latest.run), latest);
        const { heads, past, future } = left.get(policy(run)) || { heads: [], past: [], future: [] };
        latest = { run, heads, past, future, last: null, turn: latest.turn + 1 };
      }
      while (waiting.length) latest = rs.next(latest, waiting.shift());
      show();
      return latest === stored ? nothing() : latest;
    },

    /* What hears the store: the bar's buttons, and long sets, which are saved to be carried by name. */
    mirror(state) {
      if (!latest && state) latest = state;
      if (latest) show();
      const n = state ? state.heads.length : 0;
      clearTimeout(pause);
      if (n > LONG) pause = setTimeout(() => dash_clientside.set_props('long', { data: { run: state.run, heads: state.heads } }), 700);
      return [n === 0, !(state && state.past.length), !(state && state.future.length), n === 0, n === 0]; // clear, undo, redo, save, download
    },

    /* A set that the server has worked out: the best k, a saved set, two sets combined, an uploaded file. */
    propose(proposal) {
      if (!proposal) return;
      rs.chosenBy(proposal.by);
      rs.dispatch({ type: proposal.add ? 'add' : 'set', heads: proposal.heads });
    },

    saveLabel: (name, saved) => (name && (saved || []).some((set) => set.value === name.trim()) ? 'Replace' : 'Save'),
  });

  /* Buttons and keys act in their event: through Dash, a press of a button would overtake or be overtaken by a key. */
  document.addEventListener('click', (e) => {
    const button = e.target.closest('#clear, #undo, #redo');
    if (button && !button.disabled) rs.dispatch({ type: button.id });
  });
  document.addEventListener('keydown', (e) => {
    const typing = e.target.closest && e.target.closest('input, textarea, [contenteditable=true]');
    const key = e.key.toLowerCase();
    if (typing || !(e.ctrlKey || e.metaKey) || !(key === 'z' || key === 'y')) return;
    e.preventDefault();
    rs.dispatch({ type: key === 'y' || e.shiftKey ? 'redo' : 'undo' });
  });
})(window.robosteer);
