// Makes the page live. Everything here is an addition: without it, links and forms do the same by loading pages.
"use strict";
(() => {
  const body = document.body;
  const one = (selector, root = document) => root.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const words = body.dataset;
  const lang = document.documentElement.lang;

  // ---- theme: the link works by itself; here it works without loading the page again
  const themeSwitch = one("[data-theme-switch]");
  if (themeSwitch) {
    themeSwitch.addEventListener("click", (event) => {
      event.preventDefault();
      const root = document.documentElement;
      const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
      const now = root.dataset.theme === "system" ? system : root.dataset.theme;
      const next = now === "dark" ? "light" : "dark";
      root.dataset.theme = next;
      themeSwitch.textContent = next === "dark" ? themeSwitch.dataset.light : themeSwitch.dataset.dark;
      document.cookie = `roost_theme=${next}; Path=/; SameSite=Lax; Max-Age=31536000`;
    });
  }
  // Language and theme keep the rest of the address.
  for (const link of all('a[href^="?lang="], a[href^="?theme="]')) {
    const here = new URL(location.href);
    for (const [key, value] of new URL(link.href).searchParams) here.searchParams.set(key, value);
    link.href = here.pathname + here.search;
  }

  // ---- times in the reader's own zone
  const zoned = (options) => new Intl.DateTimeFormat(lang, options);
  const clock = zoned({ hour: "2-digit", minute: "2-digit" });
  const dayMonth = zoned({ day: "numeric", month: "short" });
  const dayFull = zoned({ weekday: "long", day: "numeric", month: "long", year: "numeric" });
  const full = zoned({ dateStyle: "medium", timeStyle: "short" });
  // The server's clock decides what "now" is; the browser's may be wrong.
  let ahead = body.dataset.now ? Date.parse(body.dataset.now) - Date.now() : 0;
  const now = () => Date.now() + ahead;
  const sameDay = (a, b) => a.toDateString() === b.toDateString();

  function localTimes(root) {
    for (const time of all("time[datetime]", root)) {
      const at = new Date(time.dateTime);
      if (isNaN(at)) continue;
      const as = time.dataset.as;
      const text = as === "clock" ? clock.format(at)
        : as === "row" ? (sameDay(at, new Date(now())) ? clock.format(at) : dayMonth.format(at))
        : full.format(at);
      if (time.textContent !== text) time.textContent = text;
      if (as !== "full") time.title = full.format(at);
    }
  }

  function dayName(at) {
    const today = new Date(now());
    if (sameDay(at, today)) return words.wToday;
    if (sameDay(at, new Date(now() - 86400000))) return words.wYesterday;
    return dayFull.format(at);
  }

  const log = one("[data-log]");

  // Separators stand where the reader's own day changes; only they are touched.
  function separateDays() {
    if (!log) return;
    const have = new Map(all("[data-day]", log).map((mark) => [mark.nextElementSibling, mark]));
    const kept = new Set();
    let last = null;
    for (const message of all(".msg", log)) {
      const at = new Date(message.dataset.at);
      const day = at.toDateString();
      if (day !== last) {
        let mark = have.get(message);
        if (!mark) {
          mark = document.createElement("p");
          mark.className = "day";
          mark.dataset.day = "";
          mark.append(document.createElement("span"));
          message.before(mark);
        }
        const name = dayName(at);
        if (mark.firstElementChild.textContent !== name) mark.firstElementChild.textContent = name;
        kept.add(mark);
        last = day;
      }
    }
    for (const mark of all("[data-day]", log)) if (!kept.has(mark)) mark.remove();
  }

  // ---- putting a freshly rendered piece where the old one stands, touching only what differs
  function parse(html) {
    const holder = document.createElement("template");
    holder.innerHTML = html;
    return holder.content.firstElementChild;
  }

  function become(old, fresh) {
    if (old.nodeType === Node.TEXT_NODE) {
      if (old.data !== fresh.data) old.data = fresh.data;
      return;
    }
    if (old.nodeType !== Node.ELEMENT_NODE) return;
    for (const { name } of [...old.attributes]) {
      if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name);
    }
    for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    // A time the reader already reads in his own zone is the same time.
    if (old.localName === "time") return;
    const [olds, freshes] = [[...old.childNodes], [...fresh.childNodes]];
    const alike = olds.length === freshes.length
      && olds.every((node, i) => node.nodeType === freshes[i].nodeType && node.nodeName === freshes[i].nodeName);
    if (alike) olds.forEach((node, i) => become(node, freshes[i]));
    else old.replaceChildren(...freshes);
  }

  // ---- the list
  const rows = one("[data-rows]");
  const order = (element) => Number(element.dataset.order);

  function putRow(id, html) {
    if (!rows) return;
    const old = one(`[data-conversation-id="${id}"]`, rows);
    if (!html) {
      old?.remove();
    } else {
      const fresh = parse(html);
      localTimes(fresh);
      const moved = !old || order(old) !== order(fresh);
      const row = old || fresh;
      if (old) become(old, fresh);
      localTimes(row);
      if (moved && !(body.hasAttribute("data-later-page") && !old)) {
        const focused = row.contains(document.activeElement) ? document.activeElement : null;
        const after = all("[data-conversation-id]", rows).find((other) => other !== row && order(other) < order(row));
        if (after) after.before(row); else rows.append(row);
        focused?.focus({ preventScroll: true });
      }
    }
    const empty = one("[data-empty]");
    if (empty) empty.hidden = rows.childElementCount > 0;
  }

  function putCounts(piece) {
    for (const [key, count] of Object.entries(piece.counts)) {
      const place = one(`[data-tab="${key}"] [data-count]`);
      if (place && place.textContent !== count) place.textContent = count;
    }
    putTitle(piece.unread);
  }

  function putTitle(unread) {
    document.title = (unread > 0 ? `(${unread}) ` : "") + words.title;
  }
  if (words.title) putTitle(Number(words.unread));

  // ---- the thread
  const scroll = one("[data-scroll]");
  const jump = one("[data-jump]");
  const open = body.dataset.conversation || null;
  let waitingBelow = 0;
  // What was written in this very tab: the reader wants to see it, wherever he has scrolled.
  const written = new Set();

  const nearEnd = () => !scroll || scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 80;
  const toEnd = () => { if (scroll) scroll.scrollTop = scroll.scrollHeight; waitingBelow = 0; putJump(); };

  function putJump() {
    if (!jump) return;
    jump.hidden = waitingBelow === 0;
    one("button", jump).textContent = `${waitingBelow} ${words.wNew} ↓`;
  }
  jump?.addEventListener("click", toEnd);
  scroll?.addEventListener("scroll", () => { if (waitingBelow && nearEnd()) { waitingBelow = 0; putJump(); } }, { passive: true });

  function putMessages(htmls) {
    if (!log) return;
    const stick = nearEnd();
    let ownNow = false, added = 0;
    for (const html of htmls) {
      const fresh = parse(html);
      const id = fresh.dataset.messageId;
      const old = one(`[data-message-id="${id}"]`, log);
      if (old) {
        if (old.dataset.rev === fresh.dataset.rev) continue;
        const before = old.dataset.status;
        become(old, fresh);
        localTimes(old);
        if (before !== old.dataset.status) sayOwn(old);
        continue;
      }
      // Another page of the thread is shown: what is new belongs to the newest page.
      if (body.hasAttribute("data-earlier-page")) continue;
      localTimes(fresh);
      const messages = all(".msg", log);
      // What is older than everything shown is on the page before, unless this is the whole thread.
      if (one("[data-older]") && messages.length && order(fresh) < order(messages[0])) continue;
      const next = messages.find((other) => order(other) > order(fresh)
        || (order(other) === order(fresh) && Number(other.dataset.messageId) > Number(id)));
      if (next) {
        // A day's name stays above its first message.
        const place = next.previousElementSibling?.hasAttribute("data-day") ? next.previousElementSibling : next;
        place.before(fresh);
      } else {
        log.append(fresh);
      }
      one("[data-no-messages]")?.remove();
      added += 1;
      if (written.has(id)) ownNow = true;
    }
    separateDays();
    if (!added) { if (stick) toEnd(); return; }
    if (stick || ownNow) toEnd();
    else { waitingBelow += added; putJump(); }
  }

  // Ticks are said for the reader's own last message only.
  function sayOwn(message) {
    const last = all(".msg.us", log).at(-1);
    if (message === last) one("[data-say]").textContent = one(".say", message)?.textContent ?? "";
  }

  function putComposer(html) {
    const old = one('[data-part="composer"]');
    if (!old || !html) return;
    const fresh = parse(html);
    const lockChanged = old.dataset.mode !== fresh.dataset.mode;
    if (!lockChanged) {
      if (old.dataset.windowExpires !== fresh.dataset.windowExpires) old.dataset.windowExpires = fresh.dataset.windowExpires;
      countdown();
      return;
    }
    // What was typed and which panel was open survive the lock.
    const values = new Map(all("textarea, input:not([type=hidden]):not([type=radio])", old).map((field) => [field.id, field.value]));
    const panel = one('input[name="panel"]:checked', old)?.value;
    const focus = old.contains(document.activeElement) ? document.activeElement.id : null;
    if (values.has("text")) kept = values.get("text");
    for (const field of all("textarea, input:not([type=hidden]):not([type=radio])", fresh)) {
      if (values.has(field.id)) field.value = values.get(field.id);
      else if (field.id === "text" && kept) field.value = kept;
    }
    if (panel === "note") one("#panel-note", fresh).checked = true;
    old.replaceWith(fresh);
    if (focus) (document.getElementById(focus) || one("textarea:not([hidden])", fresh))?.focus();
    countdown();
    grow();
  }
  let kept = "";

  function putHead(html) {
    const old = one('[data-part="head"]');
    if (!old || !html) return;
    const fresh = parse(html);
    const menu = one("details", old);
    // A menu somebody is using is not pulled from under their hands.
    if (menu?.open && menu.contains(document.activeElement)) return;
    become(old, fresh);
  }

  // ---- the window's countdown, by the server's clock
  function countdown(ask) {
    const composer = one('[data-part="composer"]');
    const until = composer?.dataset.windowExpires;
    if (!until) return;
    const left = Date.parse(until) - now();
    const place = one("[data-left]", composer);
    // The server decides. Should its clock be a moment behind, it is asked again at the next tick.
    if (left <= 0) { if (ask) refresh(open, true); return; }
    const minutes = Math.ceil(left / 60000);
    const [h, m] = [Math.floor(minutes / 60), minutes % 60];
    const text = h === 0 ? `${m} ${words.wMin}` : m === 0 ? `${h} ${words.wH}` : `${h} ${words.wH} ${m} ${words.wMin}`;
    if (place && place.textContent !== text) place.textContent = text;
    one("[data-countdown]", composer)?.classList.toggle("soon", left < 3600000);
  }

  // ---- fetching what changed: one request at a time per conversation, naming what is known to have changed
  const pending = new Map();
  const running = new Set();

  function refresh(id, whole, message) {
    if (!id) return;
    const want = pending.get(id) || { whole: false, messages: new Set() };
    want.whole ||= whole;
    if (message) want.messages.add(message);
    pending.set(id, want);
    if (!running.has(id)) run(id);
  }

  async function run(id) {
    running.add(id);
    try {
      while (pending.has(id)) {
        const want = pending.get(id);
        pending.delete(id);
        const query = new URLSearchParams({ view: words.view, search: words.search });
        if (id === open) {
          query.set("open", "1");
          if (!want.whole && want.messages.size && want.messages.size <= 20) query.set("messages", [...want.messages].join(","));
        }
        const response = await fetch(`/inbox/${id}/part?${query}`, { headers: { Accept: "application/json" } });
        if (response.status === 401) { location.reload(); return; }
        if (response.status === 429 || response.status >= 500) {
          await new Promise((done) => setTimeout(done, 1000 * (Number(response.headers.get("Retry-After")) || 1)));
          pending.set(id, { whole: want.whole || !want.messages.size, messages: new Set([...want.messages, ...(pending.get(id)?.messages ?? [])]) });
          continue;
        }
        if (!response.ok) return;
        const piece = await response.json();
        ahead = Date.parse(piece.now) - Date.now();
        putRow(id, piece.row);
        putCounts(piece);
        if (id === open) {
          putMessages(piece.messages);
          putHead(piece.head);
          putComposer(piece.composer);
          if (piece.unreadHere > 0 && document.visibilityState === "visible") markRead();
        }
      }
    } catch {
      // The line is down; everything is read again when it is back.
    } finally {
      running.delete(id);
    }
  }

  const post = (url, content) => fetch(url, {
    method: "POST", body: content, headers: { Accept: "application/json", "X-CSRF-Token": words.csrf },
  });

  async function markRead() {
    if (!words.csrf) return;
    try { await post(`/api/inbox/conversations/${open}/read`); } catch { /* at the next look */ }
  }
  document.addEventListener("visibilitychange", () => {
    if (document.visibilityState === "visible" && open && one(`[data-conversation-id="${open}"].unread`)) markRead();
  });

  // ---- forms: the same addresses as without the script, without loading the page
  document.addEventListener("submit", async (event) => {
    const form = event.target.closest("form[data-live]");
    if (!form) return;
    event.preventDefault();
    if (form.dataset.busy) return;
    form.dataset.busy = "1";
    const button = one("button:not([type=button])", form);
    button?.setAttribute("aria-busy", "true");
    const place = one("[data-error]");
    const say = (text) => { if (place) { place.textContent = text; place.hidden = !text; } };
    try {
      const response = await post(form.action, new URLSearchParams(new FormData(form)));
      const answer = await response.json().catch(() => ({}));
      if (!response.ok) {
        say(answer.detail || words.wNotSent);
        if (answer.code === "window_closed") refresh(open, true);
        // Somebody else decided first: show where the message stands now.
        if (answer.code === "wrong_state") refresh(open, false, form.closest("[data-message-id]")?.dataset.messageId);
        return;
      }
      say("");
      if (form.hasAttribute("data-write")) {
        for (const field of all("textarea", form)) field.value = "";
        kept = "";
        const key = one('[name="clientMessageId"]', form);
        // The next message is another one.
        if (key) key.value = self.crypto?.randomUUID?.() ?? `${Date.now()}-${Math.random()}`;
        grow();
        one("textarea", form)?.focus();
      }
      const menu = form.closest("details");
      if (menu) { menu.open = false; one("summary", menu)?.focus(); }
      // Its button goes with the bubble that it changed; the reader stays where he is.
      if (form.hasAttribute("data-decide")) scroll?.focus({ preventScroll: true });
      else if (answer.messageId) {
        written.add(String(answer.messageId));
        // The stream may have brought it before the answer came.
        if (one(`[data-message-id="${answer.messageId}"]`, log)) toEnd();
      }
      refresh(open, !answer.messageId, answer.messageId);
    } catch {
      // The text stays where it is, and so does its key: sending again cannot send it twice.
      say(words.wNotSent);
    } finally {
      delete form.dataset.busy;
      button?.removeAttribute("aria-busy");
    }
  });

  document.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    const typing = event.target.closest("textarea, input, select");
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && typing?.form?.hasAttribute("data-write")) {
      event.preventDefault();
      typing.form.requestSubmit();
    } else if (event.key === "Escape") {
      const menu = event.target.closest("details[open]");
      if (menu) { menu.open = false; one("summary", menu)?.focus(); }
      else if (typing && typing.type !== "search") { typing.blur(); scroll?.focus({ preventScroll: true }); }
      else if (!typing && open) one("[data-back]")?.click();
    }
  });

  // The box grows with what is typed.
  function grow() {
    for (const area of all(".composer textarea")) {
      area.rows = Math.min(8, Math.max(2, area.value.split("\n").length));
    }
  }
  document.addEventListener("input", (event) => { if (event.target.closest(".composer textarea")) grow(); });

  // ---- older messages, without moving what is being read
  document.addEventListener("click", async (event) => {
    const link = event.target.closest("[data-older]");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    if (link.dataset.busy) return;
    link.dataset.busy = "1";
    try {
      const url = new URL(link.href);
      const response = await fetch(`${url.pathname}/older${url.search}`, { headers: { Accept: "application/json" } });
      if (!response.ok) return;
      const piece = await response.json();
      const holder = document.createElement("template");
      holder.innerHTML = piece.html;
      for (const message of all("[data-message-id]", holder.content)) {
        if (one(`[data-message-id="${message.dataset.messageId}"]`, log)) message.remove();
      }
      localTimes(holder.content);
      const [height, top] = [scroll.scrollHeight, scroll.scrollTop];
      log.prepend(holder.content);
      separateDays();
      scroll.scrollTop = top + (scroll.scrollHeight - height);
      if (piece.older) link.href = piece.older; else link.closest("p").remove();
    } finally {
      delete link.dataset.busy;
    }
  });

  // ---- the line: an event stream with a memory. A dead one is noticed by its missing beat.
  const BEAT = 3, DEAD_AFTER = 8000;
  const banner = one("[data-banner]");
  let last = body.dataset.cursor, source = null, heard = 0, tries = 0, retry = 0;

  function connected() {
    heard = Date.now();
    tries = 0;
    if (banner) banner.hidden = true;
  }

  function connect() {
    clearTimeout(retry);
    source?.close();
    heard = Date.now();
    source = new EventSource(`/api/events?beat=${BEAT}&since=${encodeURIComponent(last)}`);
    const hear = (event) => { if (event.lastEventId) last = event.lastEventId; connected(); };
    source.onopen = connected;
    source.addEventListener("beat", hear);
    source.addEventListener("reset", (event) => { hear(event); readAgain(); });
    source.onmessage = (event) => {
      hear(event);
      const change = JSON.parse(event.data);
      if (change.conversationId) refresh(String(change.conversationId), change.kind !== "message_status", change.messageId);
    };
    source.onerror = lost;
  }

  function lost() {
    source?.close();
    if (banner) banner.hidden = false;
    clearTimeout(retry);
    retry = setTimeout(connect, Math.min(5000, 300 * 2 ** tries++) * (0.75 + Math.random() / 2));
  }

  // The stream cannot say what was missed: every shown row and the open thread are read again.
  function readAgain() {
    for (const row of all("[data-conversation-id]", rows ?? document).slice(0, 50)) refresh(row.dataset.conversationId, true);
    if (open) refresh(open, true);
  }

  if (last) {
    connect();
    setInterval(() => { if (source && Date.now() - heard > DEAD_AFTER) lost(); countdown(true); }, 1000);
    addEventListener("online", connect);
    addEventListener("offline", lost);
    addEventListener("pagehide", () => source?.close());
    addEventListener("pageshow", (event) => { if (event.persisted) connect(); });
  }

  // ---- the page as it was served
  localTimes(document);
  separateDays();
  grow();
  countdown();
  if (scroll && !location.hash && !body.hasAttribute("data-earlier-page")) toEnd();
  else if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView({ block: "center" });
})();
