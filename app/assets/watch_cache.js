/* The Watch page's caches: bytes of heads, and pictures decoded some frames ahead.  Both are bounded; what falls out is
 * still in the browser's own cache, because the addresses carry a version. */
(function (rs) {
  /* Keeps the latest `size` entries, and tells of those that fall out. */
  const bounded = (size, dropped = () => {}) => {
    const kept = new Map();
    return {
      get(key) {
        if (!kept.has(key)) return undefined;
        const value = kept.get(key);
        kept.delete(key);
        kept.set(key, value);
        return value;
      },
      has: (key) => kept.has(key),
      set(key, value) {
        kept.delete(key);
        kept.set(key, value);
        while (kept.size > size) {
          const [oldest, gone] = kept.entries().next().value;
          kept.delete(oldest);
          dropped(gone);
        }
        return value;
      },
      drop: (key) => kept.delete(key),
    };
  };

  const RETRY = (rs.watchRetry = 2000); // milliseconds until what did not come is asked for again
  const HEADS = 24; // files of heads: four heads on two cameras with their series, twice
  const heads = bounded(HEADS);
  rs.watchBytes = (url) => heads.get(url) || heads.set(url, load(url).catch((error) => {
    heads.drop(url); // ask again the next time
    throw error;
  }));

  const load = async (url) => {
    const answer = await fetch(url);
    if (!answer.ok) throw new Error(`the server answers ${answer.status}`);
    return answer.arrayBuffer();
  };

  const DECODED = 96, PACKS = 16, AHEAD = 24, BEHIND = 6; // frames, packs, frames, frames
  const LEAD = 3; // packs that are fetched before they are needed: three quarters of a second at 60 frames/s

  /* Pictures of one camera: `get` gives a bitmap, null where there is no picture or it cannot be had now (`failing` says
   * why; it is asked for again), undefined while it is on its way. */
  class Frames {
    constructor(base, v, camera, scene, arrived) {
      Object.assign(this, { base, v, camera, count: scene.frames, size: scene.pack, arrived });
      this.bitmaps = bounded(DECODED, (bitmap) => bitmap && bitmap.close());
      this.packs = bounded(PACKS);
      this.coming = new Set();
      this.failures = new Map(); // pack -> why it did not come the last time
    }
    get(frame) {
      if (this.bitmaps.has(frame)) return this.bitmaps.get(frame);
      this.decode(frame);
      return this.failing(frame) ? null : undefined;
    }
    failing(frame) {
      return this.failures.get(this.packOf(frame));
    }
    packOf(frame) {
      return Math.floor(frame / this.size);
    }
    /* What will be needed next; but first, and alone on the line, what is needed now. */
    ahead(frame, step) {
      if (!this.bitmaps.has(frame)) return;
      for (let d = 1; d <= AHEAD; d++) this.want(frame + step * d);
      for (let d = 1; d <= BEHIND; d++) this.want(frame - step * d);
      for (let k = 1; k <= LEAD; k++) {
        const next = frame + step * k * this.size;
        if (next >= 0 && next < this.count) this.pack(this.packOf(next)).catch(() => {});
      }
    }
    want(frame) {
      if (frame >= 0 && frame < this.count && !this.bitmaps.has(frame)) this.decode(frame);
    }
    async decode(frame) {
      if (this.coming.has(frame)) return;
      this.coming.add(frame);
      try {
        const bytes = (await this.pack(this.packOf(frame)))[frame % this.size];
        const blob = new Blob([bytes], { type: 'image/jpeg' });
        this.bitmaps.set(frame, bytes.length ? await createImageBitmap(blob).catch(() => null) : null);
      } catch {
        return; // the pack did not come: it tells when it is worth asking again
      } finally {
        this.coming.delete(frame);
      }
      this.arrived();
    }
    pack(at) {
      const known = this.packs.get(at);
      if (known) return known;
      const start = at * this.size, stop = Math.min(start + this.size, this.count);
      const url = `${this.base}/frames/${this.camera}/${start}-${stop}.pack?v=${this.v}`;
      const coming = load(url).then(unpack);
      coming.then(() => this.failures.delete(at), (error) => {
        this.failures.set(at, error.message);
        this.arrived();
        setTimeout(() => {
          this.packs.drop(at);
          this.arrived(); // what is still wanted is asked for again
        }, RETRY);
      });
      return this.packs.set(at, coming);
    }
  }

  /* uint32 count, uint32 length of each, then the files. */
  const unpack = (buffer) => {
    const head = new DataView(buffer), count = head.getUint32(0, true), files = [];
    let at = 4 * (1 + count);
    for (let i = 0; i < count; i++) {
      const length = head.getUint32(4 * (1 + i), true);
      files.push(new Uint8Array(buffer, at, length));
      at += length;
    }
    return files;
  };

  /* A scene's pictures: (take, camera) -> Frames. Takes that edit words only share the recorded pictures. */
  rs.watchFrames = (scene, arrived) => {
    const all = new Map();
    return (take, camera) => {
      const key = `${take.frames}/${camera.name}`;
      if (!all.has(key)) all.set(key, new Frames(take.frames, take.v, camera.name, scene, arrived));
      return all.get(key);
    };
  };
})(window.robosteer);
