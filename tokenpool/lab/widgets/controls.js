// Controls from native inputs, each with a label for screen readers and working arrow keys. One widget in five kinds:
// a slider with a number box, a drop-down, a checkbox, a file, a question with radio buttons.

const element = (tag, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
};

// An input that gets its keys. JupyterLab and Notebook use arrow keys and letters as commands on cells; Notebook does so
// before any listener here is called, and only this attribute of the focused element stops it.
const field = (tag, properties) => {
  const made = element(tag, properties);
  made.dataset.lmSuppressShortcuts = "true";
  return made;
};

// kind -> function of (row, model, id) that returns a function to show the model's state
const kinds = {
  number(row, model, id) {
    const label = element("label", { htmlFor: id });
    const range = field("input", { type: "range", id });
    const number = field("input", { type: "number" });
    let waiting = 0;
    const send = () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => { model.set("value", Number(range.value)); model.save_changes(); }, 30);
    };
    range.addEventListener("input", () => { number.value = range.value; send(); });
    number.addEventListener("change", () => {
      range.value = number.value;             // the browser moves it into the range and to a step
      number.value = range.value;
      send();
    });
    row.append(label, range, number);
    return () => {
      label.textContent = model.get("label");
      number.setAttribute("aria-label", model.get("label") + ", as a number");
      for (const input of [range, number]) {
        input.min = model.get("low");
        input.max = model.get("high");
        input.step = model.get("step");
        if (input.value !== String(model.get("value"))) input.value = model.get("value");
      }
    };
  },

  choice(row, model, id) {
    const label = element("label", { htmlFor: id });
    const select = field("select", { id });
    select.addEventListener("change", () => { model.set("index", select.selectedIndex); model.save_changes(); });
    row.append(label, select);
    return () => {
      label.textContent = model.get("label");
      select.replaceChildren(...model.get("names").map((name) => element("option", { textContent: name })));
      select.selectedIndex = model.get("index");
    };
  },

  switch(row, model, id) {
    const label = element("label", { htmlFor: id });
    const box = field("input", { type: "checkbox", id });
    box.addEventListener("change", () => { model.set("value", box.checked); model.save_changes(); });
    row.append(label, box);
    return () => { label.textContent = model.get("label"); box.checked = model.get("value"); };
  },

  upload(row, model, id) {
    const label = element("label", { htmlFor: id });
    const file = field("input", { type: "file", id });
    file.addEventListener("click", () => { file.value = ""; });       // the same file may be chosen again
    file.addEventListener("change", async () => {
      const [chosen] = file.files;
      if (!chosen) return;
      const small = chosen.size <= model.get("limit");                // a larger one would break the connection
      const content = await (small ? chosen : new Blob()).arrayBuffer();
      model.send({ name: chosen.name, size: chosen.size }, undefined, [content]);
    });
    row.append(label, file);
    return () => { label.textContent = model.get("label"); file.accept = model.get("accept"); };
  },

  question(row, model, id) {
    const legend = element("legend");
    const group = element("fieldset", {}, legend);
    row.append(group);
    return () => {
      legend.textContent = model.get("label");
      group.disabled = model.get("disabled");
      if (group.querySelectorAll("input").length === model.get("names").length) return;
      model.get("names").forEach((name, place) => {
        const radio = field("input", { type: "radio", name: id, id: `${id}-${place}` });
        radio.addEventListener("change", () => { model.set("index", place); model.save_changes(); });
        group.append(element("div", {}, radio, element("label", { htmlFor: radio.id, textContent: name })));
      });
    };
  },
};

export default {
  render({ model, el }) {
    const kind = model.get("kind");
    const row = element("div", { className: `tp-control tp-${kind}` });
    el.append(row);
    const show = kinds[kind](row, model, "tp-" + Math.random().toString(36).slice(2));
    model.on("change", show);
    show();
    // plotly measures the page before its figure is on it, and again only after a resize event of the window
    const measure = new ResizeObserver(() => window.dispatchEvent(new Event("resize")));
    measure.observe(row);
    return () => { measure.disconnect(); model.off("change", show); };
  },
};
