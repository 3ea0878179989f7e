// Keeps what runs up to date, and ages true, while one looks. Everything is there without it, as of when the page was made.
"use strict";

(() => {
  const units = [[90, 1, "second"], [5400, 60, "minute"], [129600, 3600, "hour"], [5184000, 86400, "day"], [63072000, 2629800, "month"], [Infinity, 31557600, "year"]];

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
      const text = ago(Math.floor((Date.now() - Date.parse(time.dateTime)) / 1000));
      if (time.textContent !== text) time.textContent = text;
    }
  };
  setInterval(keepAges, 30000);

  const live = document.querySelector("[data-live]");
  if (!live || !window.EventSource) return;

  const show = (now) => {
    // Another run began or ended: what the page says of the backup may be old.
    if (Number(live.dataset.run) !== now.run && !now.running) {
      location.reload();
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
    const source = new EventSource("/now/events");
    source.onmessage = (event) => show(JSON.parse(event.data));
    source.onerror = () => {
      // Refused: too many look, or the session is over. What is merely broken is tried again by the browser itself.
      if (source.readyState === EventSource.CLOSED) setTimeout(listen, 15000);
    };
    addEventListener("pagehide", () => source.close());
  };
  listen();
})();
