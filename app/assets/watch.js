/* The Watch page's player: pictures, attention over them, words, cursor.
 *
 * No frame asks the server.  A head's bytes of the whole episode are fetched once (uint8 patches, float32 series), the
 * pictures in packs of JPEGs some seconds ahead (watch_cache.js); painting a frame is drawing on canvases.  Memory is
 * bounded by the caches, not by the episode.
 *
 *   watchShown   selection, wishes, scene -> which tiles: {head, take} each, one of them leading
 *   watchStage   builds the tiles and paints
 *   rs.watch     the player: seek, play, state; what benchmarks and tests look at
 */
(function (rs) {
  const player = (rs.watch = { frame: 0, playing: false, painted: 0, speed: null, tiles: [], scene: null });
  const WIDTH = 320; // pixels of a canvas's longer side; the page scales it
  const el = (name, attributes = {}, ...children) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key in made && key !== 'role' && key !== 'list') made[key] = value;
      else made.setAttribute(key, value);
    }
    made.append(...children);
    return made;
  };
  const clamp = (v, low, high) => Math.max(low, Math.min(high, v));
  const root = () => document.getElementById('watch-stage');

  /* ---- colours of the overlay: no attention is transparent, more is more opaque and lighter ---- */

  const STOPS = [[150, 12, 60], [214, 40, 40], [247, 127, 0], [252, 191, 73], [255, 250, 205]];
  const RAMP = new Uint8ClampedArray(256 * 3);
  for (let i = 0; i < 256; i++) {
    const at = (i / 255) * (STOPS.length - 1), k = Math.min(Math.floor(at), STOPS.length - 2), t = at - k;
    for (let c = 0; c < 3; c++) RAMP[3 * i + c] = STOPS[k][c] + t * (STOPS[k + 1][c] - STOPS[k][c]);
  }

  /* ---- a tile: one head on all cameras, in one take ---- */

  const picture = (camera) => {
    const box = camera.letterbox, scale = WIDTH / Math.max(box.width, box.height);
    const canvas = el('canvas', { width: Math.round(box.width * scale), height: Math.round(box.height * scale), role: 'img' });
    const grid = el('canvas', { width: camera.grid[1], height: camera.grid[0] });
    const caption = el('span');
    return {
      camera, canvas, caption, grid, over: canvas.getContext('2d'), under: grid.getContext('2d'),
      image: grid.getContext('2d').createImageData(camera.grid[1], camera.grid[0]),
      figure: el('figure', {}, canvas, el('figcaption', {}, el('b', {}, camera.name), ' ', caption)),
    };
  };

  const build = (shown, scene) => {
    const many = shown.tiles.length, twins = shown.tiles.some((tile) => tile.take !== 'clean');
    player.tiles = shown.tiles.map((tile, place) => {
      const take = scene.takes[tile.take], pictures = scene.cameras.map(picture);
      const name = el('button', { type: 'button', className: 'rs-tile-name', title: 'lead with this head' }, tile.head);
      name.setAttribute('aria-pressed', String(place === shown.leading));
      name.addEventListener('click', () => rs.wish({ head: tile.head }));
      const words = el('p', { className: 'rs-words' });
      const spans = take.columns.word.map((word) => el('span', {}, word));
      spans.forEach((span) => words.append(span, ' '));
      const note = el('span', { className: 'rs-tile-note' });
      const about = take.factor ? `${take.label} (${take.factor} twin)` : take.label;
      const heading = el('header', {}, el('i', { className: `rs-tile-key k${place}`, 'aria-hidden': 'true' }), name,
        ...(twins ? [el('span', { className: 'rs-tile-take' }, about)] : []), note);
      const cameras = el('div', { className: 'rs-cameras' }, ...pictures.map((p) => p.figure));
      const article = el('article', { className: 'rs-tile' }, heading, cameras, spans.length ? words : el('p', { className: 'rs-words' }, '(no instruction)'));
      article.setAttribute('aria-label', `${tile.head}, ${take.label}`);
      return { ...tile, info: take, pictures, spans, note, article, patches: null, series: null };
    });
    const holder = document.getElementById('watch-tiles');
    holder.replaceChildren(...player.tiles.map((tile) => tile.article));
    holder.dataset.count = String(many);
  };

  const fetchTile = async (tile, scene) => { // until it has come, or the tile is no longer shown
    const head = rs.parseHead(tile.head), base = `${tile.info.base}/${head.tower}/${head.layer}/${head.head}`;
    if (!tile.note.textContent) tile.note.textContent = 'loading…';
    try {
      const [series, ...patches] = await Promise.all([
        rs.watchBytes(`${base}/series.f32?v=${tile.info.v}`),
        ...scene.cameras.map((camera) => rs.watchBytes(`${base}/${camera.name}.u8?v=${tile.info.v}`)),
      ]);
      tile.series = new Float32Array(series);
      tile.patches = patches.map((buffer) => new Uint8Array(buffer));
      tile.width = tile.series.length / scene.frames;
      tile.peaks = scene.cameras.map((_, c) => most(tile, scene, c));
      tile.loudest = Math.max(1e-9, ...tile.info.columns.word.map((_, w) => most(tile, scene, tile.width - tile.info.columns.word.length + w)));
      tile.note.textContent = '';
    } catch (error) {
      tile.note.textContent = `cannot be loaded (${error.message}), asking again …`;
      setTimeout(() => player.tiles.includes(tile) && root() && fetchTile(tile, scene), rs.watchRetry);
    }
    repaint();
  };
  const most = (tile, scene, column) => {
    let top = 0;
    for (let f = 0; f < scene.frames; f++) top = Math.max(top, tile.series[f * tile.width + column]);
    return top;
  };

  /* ---- painting ---- */

  // two digits, so that a small share is not nothing
  const percent = (share) => (share && share < 1e-4 ? '< 0.01 %' : `${(100 * share).toFixed(share < 0.001 ? 2 : share < 0.1 ? 1 : 0)} %`);

  const paintPicture = (tile, c, bitmap, frame) => {
    const p = tile.pictures[c], { over, canvas, grid, under, image, camera } = p, { letterbox: box } = camera;
    over.imageSmoothingEnabled = true;
    if (bitmap) over.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    else over.clearRect(0, 0, canvas.width, canvas.height);
    if (!tile.series) return;
    over.fillStyle = `rgba(8, 12, 18, ${0.5 * player.opacity})`; // so that the overlay shows on pictures of any colour
    over.fillRect(0, 0, canvas.width, canvas.height);
    const peak = tile.series[frame * tile.width + c];
    const scale = player.scale === 'episode' ? peak / Math.max(tile.peaks[c], 1e-30) : 1;
    const cells = camera.grid[0] * camera.grid[1], from = frame * cells, bytes = tile.patches[c], pixels = image.data;
    for (let i = 0; i < cells; i++) {
      const v = Math.round(bytes[from + i] * scale);
      pixels[4 * i] = RAMP[3 * v];
      pixels[4 * i + 1] = RAMP[3 * v + 1];
      pixels[4 * i + 2] = RAMP[3 * v + 2];
      pixels[4 * i + 3] = v * player.opacity;
    }
    under.putImageData(image, 0, 0);
    // the grid lies over the letterboxed square, of which the picture is a part: what is padding falls outside
    const x = canvas.width / box.width, y = canvas.height / box.height;
    over.drawImage(grid, -box.left * x, -box.top * y, box.size * x, box.size * y);
    const parts = tile.info.columns.mass, at = frame * tile.width + tile.info.columns.peak.length;
    const share = (name) => (parts.includes(name) ? tile.series[at + parts.indexOf(name)] : 0);
    const padding = share(`image/${camera.name}/padding`);
    const text = `gets ${percent(share(`image/${camera.name}`))}, peak patch ${percent(peak)}` + (padding > 5e-4 ? `, its padding ${percent(padding)}` : '');
    p.caption.textContent = text;
    canvas.setAttribute('aria-label', `${camera.name} camera, frame ${frame}: ${tile.head} ${text}`);
  };

  const paintWords = (tile, frame) => {
    if (!tile.series || !tile.spans.length) return;
    const from = frame * tile.width + tile.width - tile.spans.length;
    let top = tile.loudest;
    if (player.scale !== 'episode') {
      top = 1e-9;
      for (let w = 0; w < tile.spans.length; w++) top = Math.max(top, tile.series[from + w]);
    }
    tile.spans.forEach((span, w) => {
      const share = tile.series[from + w];
      span.style.setProperty('--rs-heat', (share / top).toFixed(3));
      span.title = percent(share);
    });
  };

  /* Paints the wished frame if its pictures are there; true if so. */
  const paint = () => {
    const { scene, frame } = player;
    if (!scene || !root()) return false;
    const sources = player.tiles.map((tile) => scene.cameras.map((camera) => player.frames(tile.info, camera)));
    const images = sources.map((cameras) => cameras.map((frames) => frames.get(frame)));
    sources.flat().forEach((frames) => frames.ahead(frame, player.step));
    const failing = sources.flat().map((frames) => frames.failing(frame)).find(Boolean);
    const text = failing ? `pictures cannot be loaded (${failing}), asking again …` : '';
    if (transport.said.textContent !== text) transport.said.textContent = text; // a screen reader hears it once
    if (images.flat().includes(undefined)) return false;
    player.tiles.forEach((tile, t) => {
      images[t].forEach((bitmap, c) => paintPicture(tile, c, bitmap, frame));
      paintWords(tile, frame);
    });
    if (player.shownFrame !== frame) player.painted += 1;
    player.shownFrame = frame;
    const cursor = document.getElementById('watch-cursor'); // a layer of its own: the figure is not touched
    if (cursor) cursor.style.transform = `translateX(${(100 * (frame + 0.5)) / scene.frames}%)`;
    return true;
  };

  /* One painting a display frame, however often it is asked for; again when a picture arrives. */
  let asked = false;
  const repaint = () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      paint();
    });
  };

  /* ---- moving ---- */

  let resting = null;
  player.seek = (frame, settle = true) => {
    const { scene } = player;
    if (!scene) return;
    const next = clamp(Math.round(frame), 0, scene.frames - 1);
    player.step = next >= player.frame ? 1 : -1;
    player.frame = next;
    transport.show();
    repaint();
    clearTimeout(resting);
    if (settle) resting = setTimeout(() => rs.wish({ frame: next }), 600); // the address follows when the hand rests
  };

  let last = null;
  const tick = (now) => {
    if (!player.playing) return;
    if (!root()) return player.play(false);
    const due = ((now - (last ?? now)) / 1000) * player.speed;
    if (due >= 1 || last === null) {
      const ready = player.shownFrame === player.frame;
      if (ready && last !== null) player.seek((player.frame + Math.min(Math.floor(due), 4)) % player.scene.frames, false);
      if (ready || last === null) last = now - (((due % 1) || 0) / player.speed) * 1000;
      else repaint();
    }
    requestAnimationFrame(tick);
  };
  player.play = (on = !player.playing) => {
    player.playing = on;
    last = null;
    if (on) requestAnimationFrame(tick);
    else if (player.scene) player.seek(player.frame);
    transport.show();
  };

  /* ---- transport: play, step, scrub, speed ---- */

  const transport = {
    build(scene) {
      const holder = document.getElementById('watch-transport');
      if (holder.dataset.built !== `${scene.run}/${scene.episode}`) {
        holder.dataset.built = `${scene.run}/${scene.episode}`;
        const button = (label, text, click) => {
          const made = el('button', { type: 'button', className: 'rs-key', title: label }, text);
          made.setAttribute('aria-label', label);
          made.addEventListener('click', click);
          return made;
        };
        this.toggle = button('Play', '▶', () => player.play());
        this.range = el('input', { type: 'range', min: '0', max: String(scene.frames - 1), step: '1', id: 'watch-frame' });
        this.range.setAttribute('aria-label', 'Frame');
        this.range.addEventListener('input', () => player.seek(+this.range.value));
        this.output = el('output', { htmlFor: 'watch-frame', className: 'rs-number' });
        this.speed = el('select', { className: 'rs-speed' });
        this.speed.setAttribute('aria-label', 'Speed');
        for (const fps of [...new Set([scene.fps / 2, scene.fps, 30, 60])].sort((a, b) => a - b)) {
          const own = fps === scene.fps ? 'as recorded, ' : '';
          this.speed.append(el('option', { value: String(fps), selected: fps === (player.speed || scene.fps) }, `${own}${fps} frames/s`));
        }
        this.speed.addEventListener('change', () => (player.speed = +this.speed.value));
        const keys = el('span', { className: 'rs-keys-hint' }, el('kbd', {}, 'space'), ' plays, ', el('kbd', {}, '←'), el('kbd', {}, '→'), ' step');
        this.said = el('span', { className: 'rs-said bad', role: 'status' });
        const row = el('div', { className: 'rs-transport', role: 'group' }, this.toggle,
          button('One frame back', '‹', () => player.seek(player.frame - 1)),
          button('One frame on', '›', () => player.seek(player.frame + 1)), this.range, this.output, this.speed, keys, this.said);
        row.setAttribute('aria-label', 'Player');
        holder.replaceChildren(row);
        player.speed = +this.speed.value;
      }
      this.show();
    },
    show() {
      if (!this.range || !player.scene) return;
      const { frame, scene, playing } = player, text = `${frame} / ${scene.frames - 1} · ${(frame / scene.fps).toFixed(1)} s`;
      this.range.value = String(frame);
      this.range.setAttribute('aria-valuetext', `frame ${frame} of ${scene.frames - 1}`);
      if (this.output.textContent !== text) this.output.textContent = text;
      if (this.toggle.dataset.playing !== String(playing)) {
        this.toggle.dataset.playing = String(playing);
        this.toggle.textContent = playing ? '❚❚' : '▶';
        this.toggle.setAttribute('aria-label', playing ? 'Pause' : 'Play');
        this.toggle.title = playing ? 'Pause' : 'Play';
      }
    },
  };

  document.addEventListener('keydown', (e) => {
    if (!root() || e.ctrlKey || e.metaKey || e.altKey) return;
    const on = e.target, range = on.id === 'watch-frame';
    // keys belong to the control that has the focus; the page takes those that no control wants
    if (!range && on.closest('input, textarea, select, button, summary, a, [role=radio], [role=slider], [role=option], [contenteditable=true]')) return;
    const jump = e.shiftKey ? 10 : 1;
    const moves = { ArrowLeft: player.frame - jump, ArrowRight: player.frame + jump, Home: 0, End: Infinity };
    if (e.key === ' ') player.play();
    else if (e.key in moves) player.seek(Math.min(moves[e.key], player.scene.frames - 1));
    else return;
    e.preventDefault();
  });

  /* The timeline is a scrubber too. */
  document.addEventListener('pointerdown', (e) => {
    const time = e.target.closest && e.target.closest('#watch-time');
    if (!time || !player.scene || e.button !== 0) return;
    const style = getComputedStyle(time), box = time.getBoundingClientRect();
    const left = box.left + parseFloat(style.getPropertyValue('--rs-time-left'));
    const width = box.right - parseFloat(style.getPropertyValue('--rs-time-right')) - left;
    if (e.clientX < left - 8 || e.clientX > left + width + 8) return;
    const move = (at) => player.seek(((at.clientX - left) / width) * player.scene.frames - 0.5);
    const end = () => ['pointermove', 'pointerup', 'pointercancel'].forEach((name, i) => document.removeEventListener(name, i ? end : move));
    document.addEventListener('pointermove', move);
    document.addEventListener('pointerup', end);
    document.addEventListener('pointercancel', end);
    move(e);
  });

  /* ---- which heads ---- */

  const pager = (chosen, from, size, left) => {
    const holder = document.getElementById('watch-heads');
    if (!holder) return;
    const step = (label, text, to, off) => {
      const made = el('button', { type: 'button', className: 'rs-key', disabled: off }, text);
      made.setAttribute('aria-label', label);
      made.addEventListener('click', () => dash_clientside.set_props('watch-from', { data: to }));
      return made;
    };
    const of = chosen.length > size ? `${from + 1}–${Math.min(from + size, chosen.length)} of ` : '';
    const text = chosen.length ? `${of}${chosen.length} selected` : 'none selected: the best head';
    const skipped = left ? `, ${left} of vision cannot be watched` : '';
    const buttons = chosen.length > size
      ? [step('Heads before', '‹', Math.max(0, from - size), from === 0), step('Heads after', '›', from + size, from + size >= chosen.length)] : [];
    holder.replaceChildren(el('span', {}, text + skipped), ...buttons);
  };

  Object.assign(window.dash_clientside.robosteer, {
    watchEpisode(view, scene) {
      const asked = Number((view || {}).episode ?? NaN);
      if (!scene || !Number.isInteger(asked) || asked === scene.episode) return dash_clientside.no_update;
      return { episode: asked };
    },

    watchShown(state, view, scene, from, start, now) {
      if (!scene || !state || state.run !== scene.run) return dash_clientside.no_update;
      const seen = state.heads.filter((id) => rs.parseHead(id).tower in scene.towers);
      const wished = view && view.head && rs.parseHead(view.head) && rs.parseHead(view.head).tower in scene.towers ? view.head : null;
      const edit = view && view.edit && scene.takes[view.edit] ? view.edit : null;
      const first = from < seen.length ? from : 0;
      let heads = seen.length ? seen.slice(first, first + start.shown) : [wished || start.default];
      const leading = wished && heads.includes(wished) ? wished : heads[0];
      if (edit) heads = [wished && seen.includes(wished) ? wished : leading];
      const tiles = edit ? ['clean', edit].map((take) => ({ head: heads[0], take })) : heads.map((head) => ({ head, take: 'clean' }));
      pager(seen, first, start.shown, state.heads.length - seen.length);
      const next = { tiles, leading: edit ? 0 : heads.indexOf(leading), episode: scene.episode, run: scene.run };
      return JSON.stringify(next) === JSON.stringify(now) ? dash_clientside.no_update : next;
    },

    /* The stage may not be in the document yet: then a moment later. */
    watchStage(shown, scale, opacity, scene, start) {
      player.scale = scale;
      player.opacity = opacity / 100;
      if (!shown || !scene || shown.run !== scene.run || shown.episode !== scene.episode) return dash_clientside.no_update;
      const key = JSON.stringify(shown);
      const attempt = (left) => {
        if (!document.getElementById('watch-tiles')) return left ? requestAnimationFrame(() => attempt(left - 1)) : undefined;
        const fresh = player.key !== key || !document.querySelector('#watch-tiles .rs-tile');
        if (!player.scene || player.scene.run !== scene.run || player.scene.episode !== scene.episode || !document.querySelector('#watch-transport *')) {
          const asked = Number(rs.wishes().frame ?? 0);
          player.playing = false;
          Object.assign(player, { scene, frame: Number.isInteger(asked) ? clamp(asked, 0, scene.frames - 1) : 0, step: 1, shownFrame: null });
          player.frames = rs.watchFrames(scene, repaint);
        }
        player.scene = scene;
        transport.build(scene);
        if (fresh) {
          player.key = key;
          build(shown, scene);
          player.tiles.forEach((tile) => fetchTile(tile, scene));
        }
        repaint();
      };
      attempt(60);
      return shown.tiles.length;
    },

    watchChoose(episode, compare, dim) {
      const changed = dash_clientside.callback_context.triggered_id;
      if (changed === 'watch-episode' && episode !== undefined) rs.wish({ episode, frame: null });
      if (changed === 'watch-compare') rs.wish({ edit: compare === 'heads' ? null : compare });
      if (changed === 'watch-dim') rs.wish({ dim: dim === 'norm' ? null : dim });
    },
  });

  /* What is on the stage now, as one picture; the numbers are those of every frame. */
  rs.exports = rs.exports || {};
  rs.exports['watch-frames'] = () => {
    const { scene, tiles, frame } = player, gap = 12, line = 22;
    const wide = Math.max(...tiles.map((tile) => tile.pictures.reduce((n, p) => n + p.canvas.width + gap, gap)));
    const tall = line + Math.max(...tiles[0].pictures.map((p) => p.canvas.height)) + gap;
    const canvas = el('canvas', { width: wide, height: tall * tiles.length + gap }), paper = canvas.getContext('2d');
    paper.fillStyle = '#ffffff';
    paper.fillRect(0, 0, canvas.width, canvas.height);
    paper.fillStyle = '#18222d';
    paper.font = '13px sans-serif';
    tiles.forEach((tile, t) => {
      paper.fillText(`${tile.head}, ${tile.info.label}, episode ${scene.episode}, frame ${frame}`, gap, t * tall + line - 5);
      tile.pictures.reduce((x, p) => (paper.drawImage(p.canvas, x, t * tall + line), x + p.canvas.width + gap), gap);
    });
    const rows = () => tiles.flatMap((tile) => {
      const { peak, mass, word } = tile.info.columns, names = [...peak.map((n) => `peak ${n}`), ...mass, ...word.map((w, i) => `word ${i} ${w}`)];
      return Array.from({ length: tile.series ? scene.frames : 0 }, (_, f) => ({
        head: tile.head, take: tile.take, frame: f,
        ...Object.fromEntries(names.map((name, i) => [name, +tile.series[f * tile.width + i].toPrecision(6)])),
      }));
    });
    return { name: `watch-${scene.episode}-${frame}`, title: 'Attention', meta: { episode: scene.episode, frame }, rows, canvas };
  };
})(window.robosteer);
