// Fits every slide into 1280 x 720 and draws its figures when they are first needed.
//
// Text that is too much is made smaller, down to SMALLEST (printed text alone starts at LARGEST). What does not fit then
// stays as it is, for the check in tools/make_slides.py to name. A figure gets the room that the words leave. It is drawn
// in about the size it has in the notebook and then enlarged as a whole, so that its letters grow with it.
const WIDTH = 1184, BOTTOM = 676, SMALLEST = 0.62, LARGEST = 1.4, AS_IN_NOTEBOOK = 720;

const height = (body) => Math.ceil(body.scrollHeight);
const tooWide = (body) => {
  const edge = body.getBoundingClientRect().right + 1;
  return [...body.querySelectorAll("pre, table, math, img")].some((e) =>
    e.getBoundingClientRect().right > edge || (e.matches("pre") && e.scrollWidth > e.clientWidth + 1));
};

function fit(section) {
  const body = section.querySelector(".tp-body");
  if (!body) return;
  const figures = [...body.querySelectorAll("figure.tp-figure")];
  const room = BOTTOM - body.offsetTop;
  for (const figure of figures) figure.style.height = "0px";
  const least = figures.length ? 300 : 0;
  const alone = body.children.length && [...body.children].every((e) => e.matches("pre.tp-text"));
  for (let size = alone ? LARGEST : 1; size > SMALLEST; size -= 0.02) {
    body.style.fontSize = size.toFixed(2) + "em";
    if (height(body) + least <= room && !tooWide(body)) break;
  }
  const each = (room - height(body)) / (figures.length || 1) - 4;
  for (const figure of figures) {
    const h = Math.min(figure.dataset.height, Math.max(380, 0.85 * figure.dataset.height));
    const layout = JSON.parse(figure.querySelector("script").textContent).layout || {};
    const scale = Math.max(0.4, Math.min(each / h, WIDTH / (layout.width || AS_IN_NOTEBOOK)));
    const w = layout.width || Math.min(WIDTH / scale, 2.4 * h);
    Object.assign(figure.dataset, { drawnWidth: w, drawnHeight: h });
    figure.style.width = w * scale + "px";
    figure.style.height = h * scale + "px";
    const plot = figure.querySelector(".tp-plot");
    Object.assign(plot.style, { width: w + "px", height: h + "px" });
    plot.style.transform = `scale(${scale})`;
  }
}

function draw(section) {
  if (!section) return;
  for (const figure of section.querySelectorAll("figure.tp-figure:not(.tp-drawn)")) {
    figure.classList.add("tp-drawn");
    const { data, layout, frames } = JSON.parse(figure.querySelector("script").textContent);
    Plotly.newPlot(figure.querySelector(".tp-plot"), {
      data, frames,
      layout: { ...layout, autosize: false, width: Number(figure.dataset.drawnWidth), height: Number(figure.dataset.drawnHeight) },
      config: { displayModeBar: false },
    });
  }
}

const slides = () => [...document.querySelectorAll(".reveal .slides section:not(.stack)")];
const show = () => { const all = slides(), now = all.indexOf(Reveal.getCurrentSlide()); draw(all[now]); draw(all[now + 1]); };

Reveal.on("ready", async () => {
  await document.fonts.load("20px Maths");
  const deck = document.querySelector(".reveal .slides");
  deck.classList.add("tp-measure");
  slides().forEach(fit);
  deck.classList.remove("tp-measure");
  Reveal.on("slidechanged", show);
  if (location.search.includes("print-pdf")) slides().forEach(draw);
  else show();
  document.body.dataset.fitted = "yes";
});
