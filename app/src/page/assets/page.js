// Keeps what one looks at true: the verdict, what runs, and ages. Everything is there without it, as of when the page was made.
"use strict";

(() => {
  const REFRESHED_EVERY = 600000;
  const DOUBTED_EVERY = 60000;
  const SILENT_MAX = 60000;
  const ANSWER_WITHIN = 20000;
  const units = [[90, 1, "second"], [5400, 60, "minute"], [129600, 3600, "hour"], [5184000, 86400, "day"], [63072000, 2629800, "month"], [Infinity, 31557600, "year"]];

  // The clock of whoever looks may be wrong: ages go by the server's.
  let ahead = 0;
  const setClock = (page) => {
    const made = Date.parse(page.body.dataset.made);
    if (!Number.isNaN(made)) ahead = made - Date.now();
  };
  setClock(document);

  // As the server says it: see words.rs.
  const ago = (seconds) => {
    if (Math.abs(seconds) <= 20) return "just now";
    const [, length, unit] = units.find(([end]) => Math.abs(seconds) < end);
    const number = length > 40000 ? Math.floor(Math.abs(seconds) / length + (unit === "year" ? 0 : 0.5)) : Math.floor((Math.abs(seconds) + length / 2) / length);
    const span = `${number} ${unit}${number === 1 ? "" : "s"}`;
    return seconds < 0 ? `in ${span}` : `${span} ago`;
  };

  const keepAges = () => {
    for (const time of document.querySelectorAll("time[data-ago]")) {
      const text = ago(Math.floor((Date.now() + ahead - Date.parse(time.dateTime)) / 1000));
      if (time.textContent !== text) time.textContent = text;
    }
  };

  const strip = () => document.querySelector("[data-live]");
  const verdict = () => document.querySelector(".verdict");
  let source = null;
  let readAt = Date.now();
  let heardAt = Date.now();
  let askedAt = Date.now();
  let isDoubted = false;
  let isReading = false;

  // What cannot be asked for any more may not be so any more: green least of all.
  const doubt = () => {
    if (isDoubted) return;
    isDoubted = true;
    const text = `No answer. What stands here was so at ${new Date(readAt).toLocaleTimeString()}, and may not be so now.`;
    const card = verdict();
    if (card) {
      card.className = "verdict unknown";
      card.querySelector(".sign")?.remove();
      card.querySelector(".word").textContent = "Not up to date";
    }
    const live = strip();
    if (live) {
      live.classList.add("stale");
      if (!card) live.querySelector("[data-text=phase]").textContent = "Not up to date";
    }
    for (const status of document.querySelectorAll("[data-stale]")) status.textContent = text;
  };

  // Another answer takes this one's place; where one is on the page, and what has the focus, stays.
  const put = (text) => {
    const made = new DOMParser().parseFromString(text, "text/html");
    const [from, to] = [made.querySelector("main"), document.querySelector("main")];
    if (!from || !made.querySelector("nav")) return location.reload();
    const focused = to.contains(document.activeElement) && document.activeElement !== to ? document.activeElement : null;
    const same = (element) => element.tagName === focused.tagName && element.getAttribute("href") === focused.getAttribute("href") && element.textContent === focused.textContent;
    to.replaceChildren(...from.childNodes);
    document.querySelector("footer")?.replaceChildren(...made.querySelector("footer").childNodes);
    if (focused) [...to.querySelectorAll("a, button, summary, [tabindex]")].find(same)?.focus({ preventScroll: true });
    setClock(made);
    readAt = heardAt = Date.now();
    isDoubted = false;
  };

  const refresh = async () => {
    if (isReading) return;
    isReading = true;
    askedAt = Date.now();
    try {
      // That nobody asked for it is said, so that a session ends though a page is left open.
      const headers = { Accept: "text/html", "X-Page-Refresh": "1" };
      const answer = await fetch(location.href, { headers, redirect: "manual", cache: "no-store", signal: AbortSignal.timeout(ANSWER_WITHIN) });
      if (answer.ok) put(await answer.text());
      // The session is over: it leads to the login.
      else if (answer.type === "opaqueredirect") location.reload();
      else doubt();
    } catch {
      doubt();
    } finally {
      isReading = false;
    }
  };

  const show = (now) => {
    heardAt = Date.now();
    const live = strip();
    if (!live) return;
    // Another run ended, or one can be asked again: what the page says of the backup may be old.
    if (isDoubted || (Number(live.dataset.run) !== now.run && !now.running)) {
      refresh();
      return;
    }
    live.dataset.run = now.run;
    if (!("whole" in live.dataset)) live.hidden = !now.running;
    live.querySelector(".busy").hidden = !now.running;
    live.querySelector(".idle").hidden = now.running;
    for (const element of live.querySelectorAll("[data-text]")) {
      const text = now[element.dataset.text] ?? "";
      if (element.textContent !== text) element.textContent = text;
    }
    const bar = live.querySelector("[data-done]");
    if (now.done === null) bar.removeAttribute("value");
    else bar.value = now.done;
    const troubles = live.querySelector("[data-troubles]");
    if (troubles) {
      troubles.hidden = now.troubles.length === 0;
      troubles.querySelector("ul").replaceChildren(...now.troubles.map((text) => {
        const item = document.createElement("li");
        const own = document.createElement("bdi");
        own.textContent = text;
        item.append(own);
        return item;
      }));
    }
  };

  const listen = () => {
    source = new EventSource("/now/events");
    source.onmessage = (event) => show(JSON.parse(event.data));
    source.onerror = () => {
      // Refused: too many look, or the session is over. What is merely broken is tried again by the browser itself.
      if (source?.readyState === EventSource.CLOSED) {
        source = null;
        refresh();
      }
    };
  };

  // Browsers keep few streams to one host: only what is looked at has one.
  const hush = () => {
    source?.close();
    source = null;
  };

  const tick = () => {
    keepAges();
    if (document.hidden || !(strip() || verdict())) return;
    if (strip() && window.EventSource) {
      if (!source) listen();
    }
    // A stream that says nothing may be one that a proxy holds back: whether somebody is there, the page itself tells.
    const isSilent = strip() && Date.now() - heardAt > SILENT_MAX;
    if (Date.now() - askedAt > (isDoubted || isSilent ? DOUBTED_EVERY : REFRESHED_EVERY)) refresh();
  };

  const back = () => {
    heardAt = Date.now();
    tick();
  };

  setInterval(tick, 15000);
  document.addEventListener("visibilitychange", () => (document.hidden ? hush() : back()));
  addEventListener("pagehide", hush);
  addEventListener("pageshow", back);
})();
