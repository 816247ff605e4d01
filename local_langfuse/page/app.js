// The page: which view an address opens.

import { go, h, leaveFor, path, show, title } from "./base.js";
import { dashboard } from "./dashboard.js";
import { datasets, experiments, prompts } from "./library.js";
import { sessions, users } from "./people.js";
import { trace } from "./trace.js";
import { traces } from "./traces.js";

const VIEWS = { traces, sessions, users, dashboard, prompts, datasets, experiments };
const main = document.getElementById("main");
const address = () => location.pathname + location.search;
let opened;

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part; // this page did not create the address
  }
}

function noSuchPage() {
  show(title("No such page"), h("p", {}, h("code", {}, location.pathname)));
}

async function open() {
  opened = address();
  const parts = location.pathname.replace(/^\/project\/local(?=\/|$)/, "").split("/").filter(Boolean);
  const [name = "traces", id] = parts.map(decoded);
  for (const one of document.querySelectorAll("nav a")) {
    const isOpen = one.pathname === path(name === "experiments" ? "datasets" : name);
    if (isOpen) one.setAttribute("aria-current", "page");
    else one.removeAttribute("aria-current");
  }
  const signal = leaveFor(`${name}/${id}`);
  main.setAttribute("aria-busy", "true");
  const view = name === "traces" && id ? trace : Object.hasOwn(VIEWS, name) ? VIEWS[name] : noSuchPage;
  try {
    await view(id);
  } catch (error) {
    if (!signal.aborted) show(title("This could not be loaded"), h("p", { role: "alert" }, error.message));
  }
  if (!signal.aborted) main.removeAttribute("aria-busy");
}

addEventListener("go", open);
addEventListener("popstate", () => {
  if (address() !== opened) open(); // a link within the page, such as #main, does not change the view
});
addEventListener("click", (event) => {
  const to = event.target.closest?.("a[href^='/project/']");
  const isOwn = event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey;
  if (!to || isOwn || event.defaultPrevented) return;
  event.preventDefault();
  go(to.getAttribute("href"));
  main.focus({ preventScroll: true });
  scrollTo(0, 0);
});

open();
