/* The first picture (app/firstpaint.py) goes in the frame in which what it is a picture of has been drawn beneath it. */
(function () {
  const first = document.getElementById('first');
  if (!first) return;
  const LONGEST = 10000; // milliseconds: a server that has gone answers nothing, and the page beneath says so
  const start = performance.now();
  // Plotly draws no image where no head has a score
  const ready = (map) => map.querySelector(map.dataset.scored === '0' ? '.main-svg' : '.hm image');
  const drawn = () => {
    const page = document.getElementById('page');
    return page && page.firstElementChild && [...document.querySelectorAll('.rs-map')].every(ready);
  };
  const look = (now) => (drawn() || now - start > LONGEST ? first.remove() : requestAnimationFrame(look));
  requestAnimationFrame(look);
  // nothing may hide what went wrong
  window.addEventListener('error', () => first.remove());
})();
