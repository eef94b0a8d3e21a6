//! Who may do what: tokens, sessions, roles, forms of other sites, guessing.

use crate::support::{CRM, ONCE, PASSWORD, VIEWER, World, cookie_of, json};
use reqwest::Method;
use rstest::rstest;
use serde_json::json;
use std::time::Duration;
use testkit::Database;

/// Every route that needs somebody.
const ROUTES: [(&str, &str); 16] = [
    ("GET", "/api/inbox/conversations"),
    ("GET", "/api/inbox/conversations/1"),
    ("GET", "/api/inbox/conversations/1/messages/1"),
    ("POST", "/api/inbox/conversations/1/messages"),
    ("POST", "/api/inbox/conversations/1/reply"),
    ("POST", "/api/inbox/conversations/1/read"),
    ("POST", "/api/inbox/conversations/1/assign"),
    ("POST", "/api/inbox/conversations/1/internal-note"),
    ("GET", "/api/events"),
    ("GET", "/inbox"),
    ("GET", "/inbox/1"),
    ("GET", "/inbox/1/part"),
    ("POST", "/inbox/1/send"),
    ("POST", "/inbox/1/note"),
    ("POST", "/inbox/1/assign"),
    ("POST", "/inbox/1/close"),
];

#[tokio::test]
async fn every_route_asks_who_it_is() {
    let world = World::on(Database::Sqlite).await;
    for (method, path) in ROUTES {
        let request = |token: Option<&str>| {
            let request = world.anybody(method.parse().unwrap(), path);
            token.map_or(request.try_clone().unwrap(), |token| request.bearer_auth(token))
        };
        for (token, code) in [(None, "sign_in"), (Some("wrong"), "bad_token"), (Some(&CRM[1..]), "bad_token")] {
            let answer = request(token).send().await.unwrap();
            assert_eq!(answer.headers()["www-authenticate"], "Bearer realm=\"roost\"");
            assert_eq!(json(answer, 401).await["code"], code, "{method} {path}");
        }
    }
    for odd in ["Basic abc", "Bearer", "Bearer ", "bearer  ", "\u{e9}"] {
        let request = world.anybody(Method::GET, "/api/inbox/conversations");
        let answer = request.header("authorization", odd.as_bytes()).send().await.unwrap();
        assert_eq!(json(answer, 401).await["code"], "bad_token", "{odd}");
    }
    let lower = world.anybody(Method::GET, "/api/inbox/conversations").header("authorization", format!("bearer {CRM}"));
    json(lower.send().await.unwrap(), 200).await;
    // A browser is shown the way instead.
    let answer = world.anybody(Method::GET, "/inbox/7?view=mine").header("accept", "text/html").send().await.unwrap();
    assert_eq!(answer.status(), 303);
    assert_eq!(answer.headers()["location"], "/login?next=%2Finbox%2F7%3Fview%3Dmine");
}

#[rstest]
#[tokio::test]
async fn a_viewer_reads_and_writes_nothing(#[values(Database::Sqlite, Database::Postgres)] database: Database) {
    let world = World::on(database).await;
    let one = world.open_conversation("Amal", "971501234567").await;
    let id = one.conversation;
    let as_viewer = |method: Method, path: String| world.anybody(method, &path).bearer_auth(VIEWER);
    json(as_viewer(Method::GET, format!("/api/inbox/conversations/{id}")).send().await.unwrap(), 200).await;
    for (path, body) in [
        ("messages", json!({ "text": "hi" })),
        ("reply", json!({ "text": "hi" })),
        ("read", json!({})),
        ("assign", json!({ "assignedUserId": null })),
        ("internal-note", json!({ "text": "hi" })),
    ] {
        let request = as_viewer(Method::POST, format!("/api/inbox/conversations/{id}/{path}")).body(body.to_string());
        assert_eq!(json(request.send().await.unwrap(), 403).await["code"], "role_too_low", "{path}");
    }
    let vera = world.browser("vera@example.com").await;
    let page = vera.get(&format!("/inbox/{id}")).send().await.unwrap().text().await.unwrap();
    assert!(page.contains("You may read here") && !page.contains("data-testid=\"send\"") && !page.contains("/assign"));
    let csrf = vera.csrf().await;
    for (path, body) in [("send", "text=hi"), ("note", "text=hi"), ("assign", "to=none"), ("close", "a=b")] {
        let answer = vera.post(&format!("/inbox/{id}/{path}"), &format!("csrf={csrf}&{body}")).send().await.unwrap();
        assert_eq!(answer.status(), 403, "{path}");
    }
    let body = json(world.get(&format!("/api/inbox/conversations/{id}")).send().await.unwrap(), 200).await;
    assert_eq!(body["conversation"]["unreadCount"], 1, "her looking moved no counter");
}

#[rstest]
#[tokio::test]
async fn a_password_begins_a_session_that_ends_by_signing_out_and_by_time(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::on(database).await;
    let form = format!("email=SARA%40example.com+&password={}&next=%2Finbox%3Fview%3Dmine", PASSWORD.replace(' ', "+"));
    let answer = world.form("/login", form.clone()).send().await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.headers()["location"].to_str().unwrap()), (303, "/inbox?view=mine"));
    let cookie = answer.headers()["set-cookie"].to_str().unwrap();
    assert!(
        cookie.starts_with("roost_session=")
            && cookie.contains("HttpOnly")
            && cookie.contains("SameSite=Lax")
            && !cookie.contains("Secure")
    );
    let secure = world.form("/login", form).header("x-forwarded-proto", "https").send().await.unwrap();
    let cookie = secure.headers()["set-cookie"].to_str().unwrap();
    assert!(cookie.starts_with("__Host-roost_session=") && cookie.contains("; Secure") && cookie.contains("Path=/"));
    assert!(secure.headers().contains_key("strict-transport-security"));

    let sara = world.browser("sara@example.com").await;
    assert_eq!(sara.get("/inbox").send().await.unwrap().status(), 200);
    let other = world.browser("sara@example.com").await;
    assert_ne!(sara.cookie, other.cookie);
    let csrf = sara.csrf().await;
    let out = sara.post("/logout", &format!("csrf={csrf}")).send().await.unwrap();
    assert_eq!(out.headers()["location"], "/login");
    assert!(out.headers()["set-cookie"].to_str().unwrap().contains("Max-Age=0"));
    assert_eq!(sara.get("/inbox").send().await.unwrap().status(), 303, "signed out");
    assert_eq!(other.get("/inbox").send().await.unwrap().status(), 200, "the other browser stays");
    world.clock.advance(Duration::from_secs(7 * 24 * 3600));
    assert_eq!(other.get("/inbox").send().await.unwrap().status(), 303, "too old");
}

#[tokio::test]
async fn signing_in_again_changes_the_token_and_ends_the_old_one() {
    let world = World::on(Database::Sqlite).await;
    let sara = world.browser("sara@example.com").await;
    let form = format!("email=sara@example.com&password={}", PASSWORD.replace(' ', "+"));
    let csrf = sara.csrf().await;
    let answer = sara.post("/login", &format!("{form}&csrf={csrf}")).send().await.unwrap();
    assert_eq!(answer.status(), 303);
    assert_ne!(cookie_of(answer.headers()), sara.cookie);
    assert_eq!(sara.get("/inbox").send().await.unwrap().status(), 303);
}

#[rstest]
#[tokio::test]
async fn the_login_link_works_once(#[values(Database::Sqlite, Database::Postgres)] database: Database) {
    let world = World::on(database).await;
    for wrong in ["nope", "once-secre", "once-secret2"] {
        assert_eq!(world.anybody(Method::GET, &format!("/login/once/{wrong}")).send().await.unwrap().status(), 401);
    }
    let answer = world.anybody(Method::GET, &format!("/login/once/{ONCE}")).send().await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.headers()["location"].to_str().unwrap()), (303, "/inbox"));
    let page = world.anybody(Method::GET, "/inbox").header("cookie", cookie_of(answer.headers())).send().await.unwrap();
    assert!(page.text().await.unwrap().contains("Omar"), "the configuration's administrator");
    assert_eq!(world.anybody(Method::GET, &format!("/login/once/{ONCE}")).send().await.unwrap().status(), 401, "used");
}

#[rstest]
#[tokio::test]
async fn forms_of_other_sites_and_without_the_token_are_refused(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::on(database).await;
    let one = world.open_conversation("Amal", "971501234567").await;
    let sara = world.browser("sara@example.com").await;
    let csrf = sara.csrf().await;
    let omars = world.browser("omar@example.com").await.csrf().await;
    let path = format!("/inbox/{}/note", one.conversation);
    for (token, site, code) in [
        ("", "same-origin", "csrf"),
        ("csrf=", "same-origin", "csrf"),
        ("csrf=abc", "same-origin", "csrf"),
        (&format!("csrf={omars}"), "same-origin", "csrf"),
        (&format!("csrf={csrf}"), "cross-site", "foreign_origin"),
        (&format!("csrf={csrf}"), "same-site", "foreign_origin"),
    ] {
        let request = world.form(&path, format!("{token}&text=hi")).header("cookie", &sara.cookie);
        let answer = request.header("sec-fetch-site", site).header("accept", "application/json").send().await.unwrap();
        assert_eq!(json(answer, 403).await["code"], code, "{token} {site}");
    }
    let foreign = world.form(&path, format!("csrf={csrf}&text=hi")).header("cookie", &sara.cookie);
    let answer =
        foreign.header("origin", "https://evil.example").header("accept", "application/json").send().await.unwrap();
    assert_eq!(json(answer, 403).await["code"], "foreign_origin");
    // JSON too: a cookie alone writes nothing through the API.
    let api = format!("/api/inbox/conversations/{}/internal-note", one.conversation);
    let by_cookie = |token: Option<&str>| {
        let request = world.anybody(Method::POST, &api).header("cookie", &sara.cookie).body("{\"text\":\"hi\"}");
        token.map_or(request.try_clone().unwrap(), |token| request.header("x-csrf-token", token))
    };
    assert_eq!(json(by_cookie(None).send().await.unwrap(), 403).await["code"], "csrf");
    json(by_cookie(Some(&csrf)).send().await.unwrap(), 200).await;
    assert_eq!(sara.post(&path, &format!("csrf={csrf}&text=hi")).send().await.unwrap().status(), 303);
    // Nobody is signed in from elsewhere either.
    let login = world.form("/login", "email=a&password=b".into()).header("origin", "https://evil.example");
    assert_eq!(login.send().await.unwrap().status(), 403);
}

#[tokio::test]
async fn guessing_passwords_is_slowed_down_and_leaves_a_trail() {
    let world = World::on(Database::Sqlite).await;
    let guess = |email: &str| world.form("/login", format!("email={email}&password=guess")).send();
    for _ in 0..10 {
        assert_eq!(guess("sara@example.com").await.unwrap().status(), 401);
    }
    let answer = guess("sara@example.com").await.unwrap();
    assert_eq!(answer.status(), 429);
    assert!(answer.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap() > 0);
    let right = format!("email=sara@example.com&password={}", PASSWORD.replace(' ', "+"));
    assert_eq!(world.form("/login", right.clone()).send().await.unwrap().status(), 429, "also with the right one");
    for _ in 0..8 {
        assert_eq!(guess("nobody@example.com").await.unwrap().status(), 401, "an unknown e-mail answers alike");
    }
    assert_eq!(guess("omar@example.com").await.unwrap().status(), 429, "the address is counted too");
    world.clock.advance(Duration::from_secs(120));
    assert_eq!(world.form("/login", right).send().await.unwrap().status(), 303);
    let mut tx = world.store.read().await.unwrap();
    let unknown = store::audit::of(&mut tx, "user", "unknown", 100).await.unwrap();
    assert_eq!(unknown.len(), 8);
    assert!(unknown.iter().all(|row| row.action == "login.failed" && row.ip.as_deref() == Some("127.0.0.1")));
}

#[tokio::test]
async fn whoever_asks_too_fast_is_told_when_to_come_back_and_others_do_not_notice() {
    let world = World::on(Database::Sqlite).await;
    let ask = |token| world.anybody(Method::GET, "/api/inbox/conversations?limit=1").bearer_auth(token).send();
    let mut refused = None;
    for n in 0..320 {
        let answer = ask(CRM).await.unwrap();
        if answer.status() == 429 {
            refused = Some((n, answer));
            break;
        }
    }
    let (n, answer) = refused.expect("a limit");
    assert!(n >= 300, "{n}");
    assert_eq!(answer.headers()["retry-after"], "1");
    assert_eq!(json(answer, 429).await["code"], "too_fast");
    assert_eq!(ask(VIEWER).await.unwrap().status(), 200);
    world.clock.advance(Duration::from_secs(1));
    assert_eq!(ask(CRM).await.unwrap().status(), 200);
}

#[tokio::test]
async fn assigning_and_signing_in_leave_a_trail() {
    let world = World::on(Database::Sqlite).await;
    let one = world.open_conversation("Amal", "971501234567").await;
    let sara = world.browser("sara@example.com").await;
    let csrf = sara.csrf().await;
    let path = format!("/inbox/{}/assign", one.conversation);
    assert_eq!(sara.post(&path, &format!("csrf={csrf}&to=me")).send().await.unwrap().status(), 303);
    let mut tx = world.store.read().await.unwrap();
    let people = store::user::list(&mut tx).await.unwrap();
    let id = people.iter().find(|user| user.name == "Sara").unwrap().id;
    let trail = store::audit::of(&mut tx, "conversation", &one.conversation.to_string(), 10).await.unwrap();
    assert_eq!((trail[0].action.as_str(), trail[0].actor_user_id), ("conversation.assign", Some(id)));
    let logins = store::audit::of(&mut tx, "user", &id.to_string(), 10).await.unwrap();
    assert_eq!(logins[0].action, "login");
}
