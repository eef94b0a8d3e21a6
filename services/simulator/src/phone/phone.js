// Puts the server's fragments in place as they change. Without it the page works by forms and reloads.
(() => {
  'use strict';
  const page = document.documentElement.dataset;
  const who = new URLSearchParams({ as: page.as, account: page.account });
  const byId = (id) => document.getElementById(id);
  const thread = byId('thread'), people = byId('people'), hood = byId('hood'), presence = byId('presence');
  const compose = byId('compose'), text = byId('text');
  const short = new Intl.DateTimeFormat(undefined, { hour: '2-digit', minute: '2-digit' });
  const long = new Intl.DateTimeFormat(undefined, { hour: '2-digit', minute: '2-digit', second: '2-digit' });

  const localise = (root) => {
    for (const time of root.querySelectorAll('time')) {
      const at = new Date(time.dateTime);
      time.textContent = (hood.contains(time) ? long : short).format(at);
      time.title = at.toLocaleString();
    }
  };
  const fragment = (html) => {
    const template = document.createElement('template');
    template.innerHTML = html;
    return template.content;
  };
  const atEnd = () => thread.scrollHeight - thread.scrollTop - thread.clientHeight < 120;
  const toEnd = () => { thread.scrollTop = thread.scrollHeight; };

  const post = (action, fields) =>
    fetch(action, { method: 'POST', body: fields, headers: { 'x-live': '1' } }).catch(() => undefined);
  const seen = () => {
    const unread = thread.querySelector('.theirs:not([data-progress="read"])');
    if (unread && document.visibilityState === 'visible') post('/phone/seen', new URLSearchParams(who));
  };

  let typingEnds;
  const typing = (on) => {
    clearTimeout(typingEnds);
    presence.textContent = on ? 'typing…' : presence.dataset.idle;
    presence.classList.toggle('typing', on);
    if (on) typingEnds = setTimeout(() => typing(false), 25000);
  };

  const events = new EventSource(`/phone/events?${who}`);
  const on = (name, act) => events.addEventListener(name, (event) => act(JSON.parse(event.data)));
  on('thread', ({ html }) => { thread.replaceChildren(fragment(html)); localise(thread); toEnd(); seen(); });
  on('bubble', ({ no, html }) => {
    const stay = atEnd();
    const fresh = fragment(html).firstElementChild;
    const old = byId(`b${no}`);
    if (old) {
      // The same element stays, so that nothing jumps and a selection survives.
      old.dataset.progress = fresh.dataset.progress;
      old.querySelector('.meta').replaceWith(fresh.querySelector('.meta'));
      localise(old);
    } else {
      fresh.classList.add('fresh');
      thread.append(fresh);
      localise(fresh);
      if (fresh.classList.contains('theirs')) typing(false);
      if (stay || fresh.classList.contains('mine')) toEnd();
    }
    seen();
  });
  on('people', ({ html }) => { if (!people.contains(document.activeElement)) people.replaceChildren(fragment(html)); });
  on('hood', ({ html, all }) => {
    if (all) hood.replaceChildren(fragment(html)); else hood.prepend(fragment(html));
    while (hood.children.length > 60) hood.lastElementChild.remove();
    localise(hood);
  });
  on('typing', () => typing(true));
  events.addEventListener('error', () => document.body.classList.add('offline'));
  events.addEventListener('open', () => document.body.classList.remove('offline'));
  document.addEventListener('visibilitychange', seen);

  const fit = () => {
    text.rows = 1;
    while (text.scrollHeight > text.clientHeight + 2 && text.rows < 6) text.rows += 1;
  };
  text.addEventListener('input', fit);
  text.addEventListener('keydown', (event) => {
    if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      compose.requestSubmit();
    }
  });
  for (const form of document.querySelectorAll('form[action="/phone/write"], form[action="/phone/trouble"]')) {
    form.addEventListener('submit', (event) => {
      event.preventDefault();
      post(form.getAttribute('action'), new URLSearchParams(new FormData(form, event.submitter)));
      if (form === compose) { text.value = ''; fit(); }
    });
  }
  addEventListener('pagehide', () => events.close());
  localise(document);
  toEnd();
  // On a small screen the keyboard would cover what there is to see.
  if (matchMedia('(min-width: 44rem)').matches) text.focus();
})();
