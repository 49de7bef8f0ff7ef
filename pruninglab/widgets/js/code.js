// A text to copy: a cell of a notebook, or a command.
export default {
  render({ model, el }) {
    begin(el);
    const button = make("button", el, { textContent: "Copy" });
    const text = make("pre", el, { tabIndex: 0 });
    text.style.cssText = "background: #8882; padding: 8px; overflow-x: auto; user-select: all; color: inherit";
    const show = () => { text.textContent = model.get("text"); button.textContent = "Copy"; };
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(model.get("text"));
        button.textContent = "Copied";
      } catch {  // a page without the right to write there: the text is selected, Ctrl-C copies it
        getSelection().selectAllChildren(text);
        button.textContent = "Press Ctrl-C";
      }
    });
    model.on("change:text", show);
    show();
    return () => model.off("change:text", show);
  },
};
