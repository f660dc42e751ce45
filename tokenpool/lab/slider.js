// A slider and a number box with one label: both native, both named, both moved by the arrow keys.
export default {
  render({ model, el }) {
    const id = "tp-" + Math.random().toString(36).slice(2);
    const row = document.createElement("div");
    row.className = "tp-slider";
    const label = document.createElement("label");
    label.htmlFor = id;
    const range = document.createElement("input");
    range.type = "range";
    range.id = id;
    const number = document.createElement("input");
    number.type = "number";
    row.append(label, range, number);
    el.append(row);

    const show = () => {
      label.textContent = model.get("label");
      number.setAttribute("aria-label", model.get("label") + ", as a number");
      for (const input of [range, number]) {
        input.min = model.get("low");
        input.max = model.get("high");
        input.step = model.get("step");
        input.disabled = model.get("disabled");
        if (Number(input.value) !== model.get("value")) input.value = model.get("value");
      }
    };

    let waiting = 0;
    const send = (value) => {
      clearTimeout(waiting);
      waiting = setTimeout(() => { model.set("value", value); model.save_changes(); }, 30);
    };
    range.addEventListener("input", () => { number.value = range.value; send(Number(range.value)); });
    number.addEventListener("change", () => {
      const inside = Math.min(model.get("high"), Math.max(model.get("low"), Number(number.value)));
      range.value = inside;
      number.value = range.value;             // the browser rounds it to a step
      send(Number(range.value));
    });
    // JupyterLab would take the arrow keys for itself.
    row.addEventListener("keydown", (event) => event.stopPropagation());

    model.on("change", show);
    show();
    return () => { clearTimeout(waiting); model.off("change", show); };
  },
};
