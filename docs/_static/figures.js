// Draws the stored figures of a page, as wide as their column. The numbers stand beside each, as JSON.
for (const figure of document.querySelectorAll("figure.tp-figure")) {
  const { data, layout, frames } = JSON.parse(figure.querySelector("script").textContent);
  const width = layout.width;
  if (width) figure.style.maxWidth = width + "px";
  Plotly.newPlot(figure.querySelector(".tp-plot"), {
    data, frames, layout: { ...layout, width: undefined, autosize: true },
    config: { responsive: true, displayModeBar: false },
  });
}
