/* The controls of Methods are wishes in the address. */
(function (rs) {
  const wish = (key) => (value) => { rs.wish({ [key]: value }); };
  Object.assign(window.dash_clientside.robosteer, {
    wish_tower: wish('tower'), wish_factor: wish('factor'), wish_k: wish('k'), wish_pair: wish('pair'),
  });
})(window.robosteer);
