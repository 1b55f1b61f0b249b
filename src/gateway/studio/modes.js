// What the studio can be asked for: one mode a task, with what each needs besides words.

/** `easel`: what is drawn on the picture; `parts`: the controls that belong to the mode. */
export const MODES = [
  { task: "text-to-image", label: "From words", title: "What should it show?", path: "/v1/images/generations", words: true, parts: [] },
  { task: "image-to-image", label: "From a picture", title: "What should it become?", path: "/v1/images/image-to-image", words: true, easel: "picture", parts: ["strength"] },
  { task: "inpaint", label: "Repaint a part", title: "What should be there instead?", path: "/v1/images/inpaint", words: true, easel: "mask", parts: ["strength", "brush"] },
  { task: "uncrop", label: "Grow", title: "What is around it?", path: "/v1/images/uncrop", words: true, easel: "picture", parts: ["pads"] },
  { task: "scribble", label: "Scribble", title: "What is your scribble?", path: "/v1/images/controls", words: true, easel: "scribble", parts: ["scale", "brush"] },
  { task: "canny", label: "Edges", title: "What has these edges?", path: "/v1/images/controls", words: true, easel: "picture", parts: ["scale"] },
  { task: "depth", label: "Depth", title: "What has this depth?", path: "/v1/images/controls", words: true, easel: "picture", parts: ["scale"] },
  { task: "upscale", label: "Enlarge", title: "Make a picture larger", path: "/v1/images/upscale", words: false, easel: "picture", parts: ["factor"] },
  { task: "nsfw-classification", label: "Check", title: "Is a picture safe for work?", path: "/v1/images/nsfw", words: false, easel: "picture", parts: [] },
];

export const EASEL_PARTS = ["strength", "pads", "scale", "factor", "brush"];

/** Tabs for the modes whose task `offered` names; calls `chosen` with the mode. Arrow keys move between them. */
export function showTabs(list, offered, current, chosen) {
  const modes = MODES.filter((mode) => offered.has(mode.task));
  list.hidden = modes.length < 2;
  list.replaceChildren(
    ...modes.map((mode) => {
      const tab = document.createElement("button");
      tab.type = "button";
      tab.className = "tab";
      tab.id = `tab-${mode.task}`;
      tab.textContent = mode.label;
      tab.setAttribute("role", "tab");
      tab.setAttribute("aria-controls", "composer");
      tab.addEventListener("click", () => chosen(mode));
      return tab;
    }),
  );
  list.onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const tabs = [...list.children];
    const next = tabs[(tabs.indexOf(document.activeElement) + step + tabs.length) % tabs.length];
    next.focus();
    next.click();
  };
  markTab(list, current);
}

export function markTab(list, current) {
  for (const tab of list.children) {
    const selected = tab.id === `tab-${current.task}`;
    tab.setAttribute("aria-selected", selected);
    tab.tabIndex = selected ? 0 : -1;
    if (selected && list.scrollWidth > list.clientWidth) tab.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
}
