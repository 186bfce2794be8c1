// Keeps the figures of a page up to date, and copies a token. Everything works without it.
"use strict";

(() => {
  const EVERY = 10000;
  const SAY_EVERY = 30000;
  const PAUSED = "fedslm-paused";

  const main = document.querySelector("main[data-live]");
  const live = document.getElementById("live");
  const text = document.getElementById("live-text");
  const said = document.getElementById("live-said");
  const pause = document.getElementById("live-pause");
  let paused = false;
  let lastSaid = 0;
  let timer = 0;

  /** Puts the new contents of each part in place, except where the reader is inside it. */
  function renew(page) {
    let changed = 0;
    for (const part of main.querySelectorAll("[data-part]")) {
      const fresh = page.getElementById(part.id);
      if (!fresh || part.contains(document.activeElement)) continue;
      if (part.innerHTML === fresh.innerHTML) continue;
      const differs = part.textContent !== fresh.textContent;
      const open = [...part.querySelectorAll("details")].map((one) => one.open);
      part.replaceChildren(...fresh.childNodes);
      part.querySelectorAll("details").forEach((one, index) => { one.open = open[index] === true; });
      if (differs) changed += 1;
    }
    return changed;
  }

  function tell(words) {
    if (Date.now() - lastSaid < SAY_EVERY) return;
    lastSaid = Date.now();
    said.textContent = words;
  }

  function lost(words) {
    live.classList.add("stale");
    text.textContent = words;
    said.textContent = words;
  }

  async function refresh() {
    if (paused || document.hidden) return;
    let answer;
    try {
      answer = await fetch(location.pathname, {
        headers: { "x-fedslm-refresh": "1" },
        credentials: "same-origin",
        redirect: "manual",
        cache: "no-store",
      });
    } catch {
      lost(live.dataset.lost);
      return;
    }
    if (answer.type === "opaqueredirect" || answer.status === 401 || answer.status === 403) {
      stop();
      lost(live.dataset.signedOut);
      const link = document.createElement("a");
      link.href = "/login?next=" + encodeURIComponent(location.pathname);
      link.textContent = "Log in again";
      text.append(" ", link);
      pause.hidden = true;
      return;
    }
    if (!answer.ok) {
      lost(live.dataset.lost);
      return;
    }
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const changed = renew(page);
    const fresh = page.getElementById("live-text");
    if (fresh) text.textContent = fresh.textContent;
    live.classList.remove("stale");
    if (changed) tell("The figures on this page were updated.");
  }

  function stop() {
    clearInterval(timer);
  }

  function start() {
    stop();
    timer = setInterval(refresh, EVERY);
  }

  function setPaused(value) {
    paused = value;
    sessionStorage.setItem(PAUSED, value ? "1" : "");
    pause.setAttribute("aria-pressed", String(value));
    if (!value) refresh();
  }

  if (main && live && pause) {
    pause.hidden = false;
    paused = sessionStorage.getItem(PAUSED) === "1";
    pause.setAttribute("aria-pressed", String(paused));
    pause.addEventListener("click", () => setPaused(!paused));
    document.addEventListener("visibilitychange", refresh);
    start();
  }

  const copy = document.getElementById("copy");
  if (copy && navigator.clipboard) {
    copy.hidden = false;
    copy.addEventListener("click", async () => {
      const source = document.getElementById(copy.dataset.copies);
      const note = document.getElementById("copied");
      try {
        await navigator.clipboard.writeText(source.value);
        note.textContent = "Copied.";
      } catch {
        source.select();
        note.textContent = "Copy the selected text.";
      }
    });
  }
})();
