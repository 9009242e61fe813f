"use strict";
// Charts of plotly, for the pages that have some.

const PALETTE = ["#3577c1", "#e08a2c", "#3f9b57", "#c8453c", "#8a63bd", "#8b6047", "#d873b5",
  "#b5a42e", "#35a9b8", "#5b6b8c"];
const NEUTRAL = "#8d949e";
// plotly interprets tags in text
const escaped = text => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;");

const charts = [];

/** Draw the traces and layout from `figure(theme)`, and redraw them when the theme changes. */
function chart(node, figure, height = 340) {
  const draw = () => {
    const style = getComputedStyle(document.body);
    const color = name => style.getPropertyValue(name);
    const theme = {text: style.color, grid: color("--line"), faint: color("--faint")};
    const {traces, layout} = figure(theme);
    const axis = name => [name, {
      gridcolor: theme.grid, zerolinecolor: theme.grid, linecolor: theme.grid, automargin: true,
      ...layout[name],
    }];
    const axes = Object.keys({xaxis: 0, yaxis: 0, ...layout})
      .filter(name => /^[xy]axis/.test(name));
    return Plotly.react(node, traces, {
      height, margin: {l: 60, r: 20, t: 40, b: 50}, hovermode: "closest",
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: {family: style.fontFamily, size: 13, color: theme.text},
      legend: {orientation: "h", y: 1.02, yanchor: "bottom", x: 0},
      ...layout, ...Object.fromEntries(axes.map(axis)),
      modebar: {
        orientation: "v", bgcolor: "rgba(0,0,0,0)", color: theme.faint, activecolor: theme.text,
      },
    }, {
      displaylogo: false, responsive: true, displayModeBar: "hover",
      modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
    });
  };
  charts.push(draw);
  draw();
  return draw;
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  charts.forEach(draw => draw());
  dispatchEvent(new Event("resize"));
});
