// A row of buttons, one of them current. Tab moves along them without opening one; Enter or Space opens.
export default {
  render({ model, el }) {
    const row = document.createElement("nav");
    row.className = "tp-chooser";
    row.setAttribute("aria-label", "Explorers");
    model.get("names").forEach((name, place) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = name;
      button.addEventListener("click", () => { model.set("index", place); model.save_changes(); });
      row.append(button);
    });
    const show = () => [...row.children].forEach((button, place) =>
      button.setAttribute("aria-current", String(place === model.get("index"))));
    model.on("change:index", show);
    show();
    el.append(row);
    return () => model.off("change:index", show);
  },
};
