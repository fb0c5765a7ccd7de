/* What the overview exports: its maps side by side in one figure, and the table of heads behind all of its figures. */
(function (rs) {
  /* Outlines of cells as one broken line. */
  const outlines = (cells) => {
    const r = 0.47, x = [], y = [];
    for (const { layer, head } of cells) {
      x.push(head - r, head + r, head + r, head - r, head - r, null);
      y.push(layer - r, layer - r, layer + r, layer + r, layer - r, null);
    }
    return { x, y, type: 'scatter', mode: 'lines', hoverinfo: 'skip', showlegend: false };
  };

  /* Widths in proportion to the maps' heads; a colour bar for all, or one for each map that has its own scale. */
  const sideBySide = (theme, meta) => {
    const maps = [...document.querySelectorAll('#maps .rs-map')].map((frame) => {
      const plot = frame.querySelector('.js-plotly-plot'), z = plot.data[rs.TRACE.cells].z;
      const chosen = rs.chosen().map(rs.parseHead).filter((head) => head.tower === frame.dataset.tower);
      return { plot, chosen, title: plot.layout.meta.title, layers: z.length, width: z[0].length };
    });
    const own = meta.scale === 'panel';
    const total = maps.reduce((n, map) => n + map.width, 0), gap = own ? 0.11 : 0.06, free = 1 - gap * (maps.length - 1);
    const tallest = Math.max(...maps.map((map) => map.layers)), ramp = theme.worst_to_best;
    const layout = { template: theme.template, annotations: [], showlegend: false, margin: { l: 56, r: 110, t: 64, b: 48 } };
    const data = [];
    let left = 0;
    maps.forEach(({ plot, chosen, title, layers, width }, i) => {
      const n = i ? i + 1 : '', right = left + (free * width) / total, axes = { xaxis: 'x' + n, yaxis: 'y' + n };
      const scaled = own || !i ? 'coloraxis' + n : 'coloraxis';
      if (own || !i)
        layout[scaled] = {
          ...plot.layout.coloraxis, showscale: true, colorscale: ramp.map((c, k) => [k / (ramp.length - 1), c]),
          colorbar: {
            title: { text: own ? '' : meta.measured, side: 'right', font: { size: 12 } }, thickness: 14, outlinewidth: 0,
            ...(own ? { x: right + 0.005, xanchor: 'left' } : {}),
          },
        };
      data.push(
        { ...plot.data[rs.TRACE.cells], ...axes, coloraxis: scaled },
        { ...plot.data[rs.TRACE.hatch], ...axes, line: { width: 1, color: theme.hatch } },
        { ...outlines(chosen), ...axes, line: { width: 5, color: theme.halo } },
        { ...outlines(chosen), ...axes, line: { width: 2.5, color: theme.selected } },
      );
      layout['xaxis' + n] = { ...plot.layout.xaxis, domain: [left, right], anchor: 'y' + n };
      layout['yaxis' + n] = { ...plot.layout.yaxis, domain: [1 - layers / tallest, 1], anchor: 'x' + n };
      layout.annotations.push({
        text: `<b>${title}</b>`, x: left, y: 1, yshift: 18, xref: 'paper', yref: 'paper', xanchor: 'left', showarrow: false,
      });
      left = right + gap;
    });
    const clamp = (v, low, high) => Math.max(low, Math.min(high, v));
    return { data, layout, width: 170 + clamp(total * 34, 420, 1500), height: 130 + clamp(tallest * 24, 180, 900) };
  };

  let meta = {};
  const rows = () => {
    const chosen = new Set(rs.chosen());
    return rs.gridRows('heads').map((row) => ({ ...row, selected: chosen.has(row.id) }));
  };
  const said = () => Object.fromEntries(Object.entries(meta).filter(([key]) => key !== 'measured'));

  rs.exports.maps = (theme) => ({ name: `${meta.file}-maps`, meta: said(), rows, figure: () => sideBySide(theme, meta) });
  rs.exports['ranked-plot'] = (theme) => {
    const plot = document.querySelector('#ranked-plot .js-plotly-plot');
    return { name: `${meta.file}-ranked`, meta: said(), rows, figure: () => rs.onPaper(plot, plot.layout.meta.title, theme) };
  };

  Object.assign(window.dash_clientside.robosteer, {
    viewed: (method, tower, factor, scale) => rs.wish({ method, tower, factor, scale }),
    /* What the maps on the screen are of, for the files that are exported. */
    described(now) {
      meta = now;
      return now.file;
    },
  });
})(window.robosteer);
