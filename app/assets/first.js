/* The first picture (app/firstpaint.py) goes in the frame in which what it is a picture of has been drawn beneath it. */
(function () {
  const first = document.getElementById('first');
  if (!first) return;
  const drawn = () => {
    const page = document.getElementById('page');
    const maps = [...document.querySelectorAll('.rs-map')];
    return page && page.firstElementChild && maps.every((map) => map.querySelector('.hm image'));
  };
  const look = () => (drawn() ? first.remove() : requestAnimationFrame(look));
  requestAnimationFrame(look);
  // nothing may hide what went wrong
  window.addEventListener('error', () => first.remove());
})();
