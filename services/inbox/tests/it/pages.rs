//! The page as a browser without the script uses it, and the pieces that the script puts in place.

use crate::support::{World, json};
use domain::{Clock, Status};
use reqwest::Method;
use rstest::rstest;
use std::time::Duration;
use testkit::Database;
use testkit::rows;

#[rstest]
#[tokio::test]
async fn ac_29_everything_works_by_links_and_forms_alone(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::on(database).await;
    let one = world.open_conversation("Amal Haddad", "971501234567").await;
    let sara = world.browser("sara@example.com").await;
    let csrf = sara.csrf().await;
    let list = sara.get("/inbox").send().await.unwrap().text().await.unwrap();
    assert!(list.contains("Amal Haddad") && list.contains(&format!("href=\"/inbox/{}\"", one.conversation)));
    assert!(list.contains("data-testid=\"unread\""), "unread until opened");
    let path = format!("/inbox/{}", one.conversation);
    let thread = sara.get(&path).send().await.unwrap().text().await.unwrap();
    assert!(thread.contains("Hello, is anybody there?") && thread.contains("role=\"log\""));
    assert!(thread.contains("data-window-expires=\"2026-11-23T09:30:00Z\"") && thread.contains("Free replies for"));
    assert!(!thread.contains("data-testid=\"unread\""), "opening is reading");

    let sent =
        sara.post(&format!("{path}/send"), &format!("csrf={csrf}&text=Good+morning%0D%0AAmal&clientMessageId=f-1"));
    let answer = sent.send().await.unwrap();
    assert_eq!(answer.status(), 303);
    let location = answer.headers()["location"].to_str().unwrap().to_owned();
    assert!(location.starts_with(&format!("{path}#m")), "{location}");
    // The reader presses the button twice, or loads the answer again.
    let again =
        sara.post(&format!("{path}/send"), &format!("csrf={csrf}&text=Good+morning%0D%0AAmal&clientMessageId=f-1"));
    assert_eq!(again.send().await.unwrap().headers()["location"], location.as_str());

    assert_eq!(
        sara.post(&format!("{path}/note"), &format!("csrf={csrf}&text=be+kind")).send().await.unwrap().status(),
        303
    );
    assert_eq!(sara.post(&format!("{path}/assign"), &format!("csrf={csrf}&to=me")).send().await.unwrap().status(), 303);
    let thread = sara.get(&path).send().await.unwrap().text().await.unwrap();
    assert_eq!(thread.matches("Good morning\nAmal</p>").count(), 1);
    assert!(
        thread.contains("class=\"msg note\"") && thread.contains("Note for the team") && thread.contains("be kind")
    );
    let mine = sara.get("/inbox?view=mine").send().await.unwrap().text().await.unwrap();
    assert!(mine.contains("Amal Haddad"));

    assert_eq!(sara.post(&format!("{path}/close"), &format!("csrf={csrf}")).send().await.unwrap().status(), 303);
    let open = sara.get("/inbox").send().await.unwrap().text().await.unwrap();
    let closed = sara.get("/inbox?view=closed").send().await.unwrap().text().await.unwrap();
    assert!(!open.contains("Amal Haddad") && closed.contains("Amal Haddad"));
    let found = sara.get("/inbox?search=050+123").send().await.unwrap().text().await.unwrap();
    assert!(found.contains("Amal Haddad"), "a search finds closed ones too");
    assert_eq!(sara.post(&format!("{path}/reopen"), &format!("csrf={csrf}")).send().await.unwrap().status(), 303);
    assert!(sara.get("/inbox").send().await.unwrap().text().await.unwrap().contains("Amal Haddad"));
}

#[rstest]
#[tokio::test]
async fn ac_17_the_composer_locks_when_the_window_ends_and_keeps_what_was_typed(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::on(database).await;
    let one = world.open_conversation("Amal", "971501234567").await;
    let never = world.silent_conversation("Never", "971500000001").await;
    let sara = world.browser("sara@example.com").await;
    let csrf = sara.csrf().await;
    let page = sara.get(&format!("/inbox/{}", never.conversation)).send().await.unwrap().text().await.unwrap();
    assert!(
        page.contains("data-mode=\"closed\"")
            && page.contains("has not written yet")
            && !page.contains("<textarea id=\"text\"")
    );
    world.clock.advance(Duration::from_secs(24 * 3600));
    let path = format!("/inbox/{}", one.conversation);
    let late = sara.post(&format!("{path}/send"), &format!("csrf={csrf}&text=too+late")).send().await.unwrap();
    assert_eq!(late.status(), 422);
    let page = late.text().await.unwrap();
    assert!(page.contains("data-mode=\"closed\"") && page.contains("24-hour window is closed"));
    // A template goes out, with its values one per line.
    let template = format!("csrf={csrf}&templateName=renewal&templateLanguage=en&templateParams=Amal%0D%0A7+days");
    assert_eq!(sara.post(&format!("{path}/send"), &template).send().await.unwrap().status(), 303);
    // The person answers: open again.
    world.inbound(&one, "yes please", world.clock.now()).await;
    let page = sara.get(&path).send().await.unwrap().text().await.unwrap();
    assert!(page.contains("data-mode=\"open\"") && page.contains("<textarea id=\"text\""));
}

#[rstest]
#[tokio::test]
async fn pages_of_the_list_and_of_a_thread_follow_each_other_by_links(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::on(database).await;
    let mut tx = world.store.begin().await.unwrap();
    let account = rows::account(&mut tx, "sales").await.unwrap();
    for n in 0..60 {
        let at = rows::NOON - Duration::from_secs(60 * n);
        rows::conversation(&mut tx, account, &format!("Person {n:02}."), &format!("9715000{n:05}"), at).await.unwrap();
    }
    let one = rows::conversation(&mut tx, account, "Amal", "971501234567", rows::NOON).await.unwrap();
    for n in 0..70u64 {
        rows::inbound(
            &mut tx,
            &one,
            &format!("m{n}"),
            &format!("message {n:02}."),
            rows::NOON + Duration::from_secs(n),
        )
        .await
        .unwrap();
    }
    tx.commit().await.unwrap();
    let sara = world.browser("sara@example.com").await;
    let first = sara.get("/inbox").send().await.unwrap().text().await.unwrap();
    let link = |page: &str, id: &str| {
        let before = page.split(id).next().unwrap();
        before.rsplit("href=\"").next().unwrap().split('"').next().unwrap().replace("&#38;", "&").replace("&amp;", "&")
    };
    let second = sara.get(&link(&first, "data-testid=\"next-page\"")).send().await.unwrap().text().await.unwrap();
    for n in 0..60 {
        let name = format!("Person {n:02}.");
        assert_eq!(usize::from(first.contains(&name)) + usize::from(second.contains(&name)), 1, "{name}");
    }
    assert!(!second.contains("next-page"));
    let thread = sara.get(&format!("/inbox/{}", one.conversation)).send().await.unwrap().text().await.unwrap();
    assert!(thread.contains("message 69.") && thread.contains("message 20.") && !thread.contains("message 19."));
    let older = sara.get(&link(&thread, "data-older")).send().await.unwrap().text().await.unwrap();
    assert!(older.contains("message 19.") && older.contains("message 00.") && !older.contains("message 20."));
    assert!(older.contains("Back to the newest"));
}

#[rstest]
#[tokio::test]
async fn ac_11_a_piece_shows_how_far_a_message_has_come(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::on(database).await;
    let one = world.open_conversation("Amal", "971501234567").await;
    let mut tx = world.store.begin().await.unwrap();
    let mut ids = Vec::new();
    for (status, held) in [
        (Status::Queued, false),
        (Status::Sending, false),
        (Status::Sending, true),
        (Status::Sent, false),
        (Status::Delivered, false),
        (Status::Read, false),
        (Status::Failed, false),
    ] {
        ids.push(rows::outbound(&mut tx, &one, "hello", status, held, world.clock.now()).await.unwrap());
    }
    tx.commit().await.unwrap();
    let sara = world.browser("sara@example.com").await;
    let names = ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let path = format!("/inbox/{}/part?open=1&messages={names}", one.conversation);
    let part = json(sara.get(&path).send().await.unwrap(), 200).await;
    let bubbles: Vec<&str> = part["messages"].as_array().unwrap().iter().map(|html| html.as_str().unwrap()).collect();
    assert_eq!(bubbles.len(), 7);
    for (bubble, (status, words)) in bubbles.iter().zip([
        ("QUEUED", "Waiting to be sent"),
        ("SENDING", "Sending"),
        ("SENDING", "May have been sent"),
        ("SENT", "Sent"),
        ("DELIVERED", "Delivered"),
        ("READ", "Read"),
        ("FAILED", "Not sent"),
    ]) {
        assert!(bubble.contains(&format!("data-status=\"{status}\"")) && bubble.contains(words), "{bubble}");
    }
    assert!(bubbles[2].contains("data-state=\"HELD\"") && bubbles[2].contains("Somebody has to decide"));
    assert!(bubbles[6].contains("Message undeliverable (code 131026)"));
    // Nothing changed: the same revision. A change: another.
    let again = json(sara.get(&path).send().await.unwrap(), 200).await;
    assert_eq!(part["messages"], again["messages"]);
    let row = part["row"].as_str().unwrap();
    assert!(row.contains("data-conversation-id") && row.contains("Amal"));
    assert_eq!(part["counts"]["all"], "1");
    let elsewhere = format!("/inbox/{}/part?view=closed", one.conversation);
    let part = json(sara.get(&elsewhere).send().await.unwrap(), 200).await;
    assert!(part["row"].is_null() && part.get("messages").is_none());
}

#[rstest]
#[tokio::test]
async fn ac_9_what_cannot_be_shown_is_shown_as_it_arrived(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::on(database).await;
    let one = world.silent_conversation("Amal", "971501234567").await;
    let mut tx = world.store.begin().await.unwrap();
    let at = world.clock.now();
    let raw = r#"{"type":"order","note":"</script><script>alert(1)</script>"}"#;
    rows::inbound_of_type(&mut tx, &one, "u1", "unsupported", None, Some(raw), at).await.unwrap();
    rows::inbound_of_type(&mut tx, &one, "u2", "text", Some(""), Some(r#"{"text":{"body":""}}"#), at).await.unwrap();
    let photo = rows::inbound_of_type(&mut tx, &one, "u3", "image", Some("my passport"), Some("{}"), at).await.unwrap();
    rows::pending_media(&mut tx, photo, "image", "image/jpeg", Some("<b>.jpg")).await.unwrap();
    tx.commit().await.unwrap();
    let sara = world.browser("sara@example.com").await;
    let page = sara.get(&format!("/inbox/{}", one.conversation)).send().await.unwrap().text().await.unwrap();
    assert!(
        page.contains("Unsupported message")
            && page.contains("&#60;script&#62;alert(1)")
            && !page.contains("<script>alert")
    );
    assert!(page.contains("Empty message") && page.contains("<details><summary>As it arrived</summary>"));
    assert!(page.contains("Photo</b>, not fetched yet") && page.contains("my passport") && !page.contains("<b>.jpg"));
}

#[tokio::test]
async fn ac_39_every_answer_carries_the_security_headers() {
    let world = World::on(Database::Sqlite).await;
    let sara = world.browser("sara@example.com").await;
    let page = sara.get("/inbox").send().await.unwrap();
    let csp = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
               form-action 'self'; frame-ancestors 'none'; base-uri 'none'";
    let answers = [
        sara.get("/nothing").send().await.unwrap(),
        world.get("/api/inbox/conversations").send().await.unwrap(),
        world.anybody(Method::GET, "/login").send().await.unwrap(),
    ];
    for answer in answers.iter().chain([&page]) {
        let headers = answer.headers();
        assert_eq!(headers["content-security-policy"], csp);
        assert_eq!(
            (&headers["x-content-type-options"], &headers["referrer-policy"]),
            (&"nosniff".parse().unwrap(), &"no-referrer".parse().unwrap())
        );
        assert_eq!(headers["cache-control"], "no-store");
    }
    let html = page.text().await.unwrap();
    for reference in html.split("\"/assets/").skip(1) {
        let name = reference.split('"').next().unwrap();
        let asset = world.anybody(Method::GET, &format!("/assets/{name}")).send().await.unwrap();
        assert_eq!(asset.status(), 200, "{name}");
        assert!(asset.headers()["cache-control"].to_str().unwrap().contains("immutable"));
    }
    assert_eq!(world.anybody(Method::GET, "/assets/..%2fCargo.toml").send().await.unwrap().status(), 404);
}

#[tokio::test]
async fn a_refused_browser_is_shown_a_page_with_the_requests_id() {
    let world = World::on(Database::Sqlite).await;
    let sara = world.browser("sara@example.com").await;
    let answer = sara.get("/inbox/99999?lang=ar").header("x-request-id", "r-9").send().await.unwrap();
    assert_eq!(answer.status(), 404);
    let page = answer.text().await.unwrap();
    assert!(page.contains("r-9") && page.contains("dir=\"rtl\""), "{page}");
}
