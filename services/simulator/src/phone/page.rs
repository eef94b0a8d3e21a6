//! The phone as HTML. Works without JavaScript; with it, `phone.js` puts the same fragments in place as they change.

use super::{Bubble, HoodLine, Phone, Progress, ThreadKey, Tone};
use crate::locked;
use crate::options::AccountOptions;
use std::fmt::Write;

/// Text as HTML shows it, in elements and in quoted attributes.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            character => out.push(character),
        }
    }
    out
}

/// Digits as people read them: `+971 50 000 0101`.
pub(super) fn spaced(number: &str) -> String {
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return number.to_owned();
    }
    let (country, rest) = number.split_at(number.len().min(3));
    let mut out = format!("+{country}");
    let mut rest = rest;
    while rest.len() > 4 {
        let (group, more) = rest.split_at(if rest.len() % 3 == 2 { 2 } else { 3 });
        let _ = write!(out, " {group}");
        rest = more;
    }
    if !rest.is_empty() {
        let _ = write!(out, " {rest}");
    }
    out
}

const TICKS: &str = r#"<svg viewBox="0 0 20 12" aria-hidden="true"><path d="M1 6.5 5 10.5 13 1.5"/><path class="second" d="m8.6 9.6.9.9 8.5-9"/></svg>"#;
const CLOCK: &str =
    r#"<svg viewBox="0 0 12 12" aria-hidden="true"><circle cx="6" cy="6" r="5"/><path d="M6 3.2V6l2 1.3"/></svg>"#;

/// One message.
pub(super) fn bubble(bubble: &Bubble) -> String {
    let (word, label) = match bubble.progress {
        Progress::Underway => ("underway", "On its way"),
        Progress::Trying => ("trying", "The business does not answer, trying again"),
        Progress::Taken => ("taken", "Received by the business"),
        Progress::Delivered => ("delivered", "Delivered"),
        Progress::Read => ("read", "Read"),
    };
    let ticks = if !bubble.mine {
        String::new()
    } else if bubble.progress < Progress::Taken {
        format!(r#"<span class="ticks" role="img" aria-label="{label}" title="{label}">{CLOCK}</span>"#)
    } else {
        format!(r#"<span class="ticks" role="img" aria-label="{label}" title="{label}">{TICKS}</span>"#)
    };
    let template = if bubble.kind == "template" { r#"<span class="kind">template</span>"# } else { "" };
    let at = bubble.at.to_string();
    let clock = at.get(11..16).unwrap_or_default();
    format!(
        r#"<li id="b{no}" data-no="{no}" class="bubble {side}" data-progress="{word}" data-testid="phone-bubble" data-message-id="{wamid}">{template}<p dir="auto">{text}</p><span class="meta"><time datetime="{at}">{clock}</time>{ticks}</span></li>"#,
        no = bubble.no,
        side = if bubble.mine { "mine" } else { "theirs" },
        wamid = escaped(&bubble.wamid),
        text = escaped(&bubble.text),
    )
}

/// One line under the hood.
pub(super) fn hood_line(line: &HoodLine) -> String {
    let at = line.at.to_string();
    let (tone, arrow) = match line.tone {
        Tone::Out => ("out", "→"),
        Tone::In => ("in", "←"),
        Tone::Bad => ("bad", "!"),
    };
    format!(
        r#"<li class="{tone}"><span class="arrow" aria-hidden="true">{arrow}</span><span>{}</span><time datetime="{at}">{}</time></li>"#,
        escaped(&line.text),
        at.get(11..19).unwrap_or_default(),
    )
}

/// Whose phones there are, with what is unread on each.
pub(super) fn people(phone: &Phone, open: &ThreadKey) -> String {
    let state = locked(&phone.state);
    let mut out = String::new();
    for customer in &state.customers {
        let key = ThreadKey { account: open.account.clone(), customer: customer.number.clone() };
        let unread = state.threads.get(&key).map_or(0, super::Thread::unread);
        let current = if customer.number == open.customer { r#" aria-current="page""# } else { "" };
        let badge = match unread {
            0 => String::new(),
            1 => r#"<span class="badge" aria-label="1 unread message">1</span>"#.into(),
            n => format!(r#"<span class="badge" aria-label="{n} unread messages">{n}</span>"#),
        };
        let _ = write!(
            out,
            r#"<li><a href="/?as={number}&amp;account={account}"{current}><span class="face face-{face}" aria-hidden="true">{initial}</span><span class="who"><bdi>{name}</bdi><small>{spaced}</small></span>{badge}</a></li>"#,
            number = escaped(&customer.number),
            account = escaped(&open.account),
            face = customer.number.bytes().fold(0_u8, |sum, byte| sum.wrapping_mul(5).wrapping_add(byte)) % 6,
            initial = escaped(&customer.name.chars().next().unwrap_or('?').to_string()),
            name = escaped(&customer.name),
            spaced = escaped(&spaced(&customer.number)),
        );
    }
    out
}

/// All bubbles of a thread.
pub(super) fn bubbles(phone: &Phone, key: &ThreadKey) -> String {
    let state = locked(&phone.state);
    let bubbles = state.threads.get(key).map(|thread| thread.bubbles.iter());
    bubbles.into_iter().flatten().map(bubble).collect()
}

/// All lines under the hood, newest first.
pub(super) fn hood(phone: &Phone) -> String {
    let state = locked(&phone.state);
    state.hood.iter().rev().map(hood_line).collect()
}

/// What can be done to the next answer.
pub(super) const TROUBLES: [(&str, &str); 9] = [
    ("429", "says “too many requests, wait 5 s”"),
    ("500", "is an internal error"),
    ("hang_after", "never comes, but the message is taken"),
    ("cut_after", "is cut off, but the message is taken"),
    ("hang_before", "never comes, and nothing is taken"),
    ("131026", "says “undeliverable”"),
    ("131047", "says “24-hour window closed”"),
    ("190", "says “access token expired”"),
    ("slow", "takes 4 seconds"),
];

/// The whole page.
pub(super) fn whole(phone: &Phone, accounts: &[AccountOptions], key: &ThreadKey, notice: Option<&str>) -> String {
    let account = accounts.iter().find(|account| account.phone_number_id == key.account);
    let business = account.map_or("The business", |account| account.name.as_str());
    let number = account.map_or("", |account| account.display_phone_number.as_str());
    let customer = {
        let state = locked(&phone.state);
        state.customers.iter().find(|customer| customer.number == key.customer).cloned()
    };
    let name = customer.as_ref().map_or(key.customer.as_str(), |customer| customer.name.as_str());
    let hidden = format!(
        r#"<input type="hidden" name="as" value="{}"><input type="hidden" name="account" value="{}">"#,
        escaped(&key.customer),
        escaped(&key.account)
    );
    let ideas: String = customer
        .iter()
        .flat_map(|customer| &customer.ideas)
        .map(|idea| format!(r#"<button name="text" value="{0}" dir="auto">{0}</button>"#, escaped(idea)))
        .collect();
    let ideas = if ideas.is_empty() {
        String::new()
    } else {
        format!(r#"<form class="ideas" method="post" action="/phone/write" aria-label="Ideas">{hidden}{ideas}</form>"#)
    };
    let others = if accounts.len() < 2 {
        String::new()
    } else {
        let links = accounts.iter().map(|other| {
            let current = if other.phone_number_id == key.account { r#" aria-current="page""# } else { "" };
            format!(
                r#"<a href="/?as={}&amp;account={}"{current}>{}</a>"#,
                escaped(&key.customer),
                escaped(&other.phone_number_id),
                escaped(&other.name)
            )
        });
        format!(r#"<nav class="businesses" aria-label="Businesses">{}</nav>"#, links.collect::<String>())
    };
    let inbox = phone.options.inbox_url.as_ref().map_or_else(String::new, |url| {
        format!(r#"<a class="inbox" href="{}" target="roost-inbox" rel="noopener">Open the inbox <span aria-hidden="true">↗</span></a>"#, escaped(url))
    });
    let troubles: String =
        TROUBLES.iter().map(|(value, words)| format!(r#"<option value="{value}">{words}</option>"#)).collect();
    let notice =
        notice.map_or_else(String::new, |text| format!(r#"<p class="notice" role="status">{}</p>"#, escaped(text)));
    format!(
        r##"<!doctype html>
<html lang="en" data-as="{as_}" data-account="{account_id}">
<head>
<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name} · a customer’s phone</title>
<link rel="icon" href="/phone.svg" type="image/svg+xml"><link rel="stylesheet" href="/phone.css">
<script src="/phone.js" defer></script>
</head>
<body>
<div class="stage">
<aside class="people">
<h1>Whose phone?</h1>
<p class="lead">This side plays your customers. Write as one of them and answer from the inbox.</p>
{inbox}
<ul id="people" class="list">{people}</ul>
<details class="another"><summary>Somebody else</summary>
<form method="post" action="/phone/customer"><input type="hidden" name="account" value="{account_id}">
<label>Name <input name="name" required maxlength="60" autocomplete="off" dir="auto"></label>
<label>Number <input name="number" required inputmode="tel" pattern="[+0-9 ()\-]{{7,24}}" placeholder="+971 50 …" autocomplete="off"></label>
<button>Pick up this phone</button></form></details>
{notice}
</aside>
<main class="phone" aria-label="The phone of {name}">
<header class="top"><span class="face business" aria-hidden="true">{initial}</span>
<div class="who"><strong><bdi>{business}</bdi></strong><small id="presence" data-idle="{number}">{number}</small></div></header>
{others}
<ol id="thread" class="thread" aria-live="polite" aria-label="Messages" tabindex="0" data-testid="phone-thread">{bubbles}</ol>
{ideas}
<form id="compose" class="compose" method="post" action="/phone/write">{hidden}
<label class="hide" for="text">Message as {name}</label>
<textarea id="text" name="text" rows="1" required maxlength="4096" dir="auto" placeholder="Message as {name}" data-testid="phone-text"></textarea>
<button aria-label="Send" title="Send" data-testid="phone-send"><svg viewBox="0 0 24 24" aria-hidden="true"><path d="M4 12 20 4l-5 16-3.5-6.5z"/></svg></button></form>
<noscript><p class="refresh"><a href="/?as={as_}&amp;account={account_id}">Look for new messages</a></p></noscript>
</main>
<aside class="hood">
<h2>Under the hood</h2>
<form class="trouble" method="post" action="/phone/trouble">{hidden}
<label for="trouble">The provider’s next answer for <bdi>{name}</bdi></label>
<div><select id="trouble" name="fault">{troubles}</select><button>Arrange</button></div></form>
<ol id="hood" class="lines" aria-label="What went over the wire">{hood}</ol>
</aside>
</div>
</body>
</html>
"##,
        as_ = escaped(&key.customer),
        account_id = escaped(&key.account),
        name = escaped(name),
        people = people(phone, key),
        bubbles = bubbles(phone, key),
        hood = hood(phone),
        business = escaped(business),
        number = escaped(number),
        initial = escaped(&business.chars().next().unwrap_or('?').to_string()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_stays_text() {
        assert_eq!(escaped(r#"<b a="1" c='2'>&"#), "&lt;b a=&quot;1&quot; c=&#39;2&#39;&gt;&amp;");
    }

    #[test]
    fn numbers_are_readable_and_bsuids_are_left_alone() {
        assert_eq!(spaced("971500000101"), "+971 500 000 101");
        assert_eq!(spaced("PT.48151623420001"), "PT.48151623420001");
        assert_eq!(spaced("12"), "+12");
    }
}
