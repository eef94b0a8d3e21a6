//! What people decide about messages: over the API with its refusals in words, and by the buttons of the page.

use crate::support::{CRM, SOON, VIEWER, World, json};
use domain::{Clock, MessageId, Status};
use reqwest::Method;
use rstest::rstest;
use serde_json::{Value, json};
use std::time::Duration;
use store::promises::{PROMISES, audit};
use testkit::Database;
use testkit::rows::{self, Seeded};
use testkit::wait;

/// A message of ours that stands somewhere; `held`: it may have been sent.
async fn message(world: &World, to: &Seeded, status: Status, held: bool) -> MessageId {
    let mut tx = world.store.begin().await.unwrap();
    let id = rows::outbound(&mut tx, to, "hello", status, held, world.clock.now()).await.unwrap();
    tx.commit().await.unwrap();
    id
}

fn path(to: &Seeded, message: MessageId, rest: &str) -> String {
    format!("/api/inbox/conversations/{}/messages/{message}{rest}", to.conversation)
}

impl World {
    async fn cancel(&self, to: &Seeded, message: MessageId, status: u16) -> Value {
        let request = self.anybody(Method::DELETE, &path(to, message, "")).bearer_auth(CRM);
        json(request.send().await.unwrap(), status).await
    }

    async fn decide(&self, to: &Seeded, message: MessageId, rest: &str, status: u16) -> Value {
        json(self.post(&path(to, message, rest), &json!({})).send().await.unwrap(), status).await
    }

    async fn user(&self, email: &str) -> i64 {
        // The configuration's people become rows a moment after the start.
        let row = wait::until(email, SOON, async || {
            let users = store::user::list(&mut self.store.read().await?).await?;
            Ok(users.into_iter().find(|user| user.email == email))
        });
        row.await.unwrap().id.get()
    }

    /// Actions on a message with the particulars of each, newest first.
    async fn trail(&self, message: MessageId) -> Vec<(String, Value)> {
        let mut tx = self.store.read().await.unwrap();
        let trail = store::audit::of(&mut tx, "message", &message.to_string(), 10).await.unwrap();
        trail.into_iter().map(|row| (row.action, row.detail)).collect()
    }

    async fn keeps_its_promises(&self) {
        let mut tx = self.store.read().await.unwrap();
        assert_eq!(audit(&mut tx, PROMISES).await.unwrap(), []);
    }
}

/// WAITING, or already DISPATCHED: the dispatcher is told at once.
fn is_waiting(message: &Value) {
    assert_eq!(message["status"], "QUEUED", "{message}");
    assert!([json!("WAITING"), json!("DISPATCHED")].contains(&message["deliveryState"]), "{message}");
}

#[rstest]
#[tokio::test]
async fn a_program_says_that_it_arrived_on_the_word_of_a_person_it_names(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::on(database).await;
    let one = world.open_conversation("Amal", "971501234567").await;
    let held = message(&world, &one, Status::Sending, true).await;
    let sara = world.user("sara@example.com").await;
    let address = path(&one, held, "/it-arrived");
    for bad in [json!({}), json!({ "confirmedByUserId": 99_999 }), json!({ "confirmedByUserId": "Sara" })] {
        let problem = json(world.post(&address, &bad).send().await.unwrap(), 422).await;
        assert_eq!(problem["errors"][0]["path"], "confirmedByUserId", "{problem}");
    }
    let answer = world.post(&address, &json!({ "confirmedByUserId": sara })).send().await.unwrap();
    assert_eq!(answer.headers()["location"], path(&one, held, "").as_str());
    let body = json(answer, 200).await;
    let shown = &body["message"];
    assert_eq!(
        (&body["ok"], &shown["status"], &shown["outcomeUnknown"]),
        (&json!(true), &json!("SENT"), &json!(false))
    );
    assert_eq!((&shown["confirmedBy"], &shown["providerMessageId"]), (&json!("Sara"), &Value::Null));
    let trail = [("message.it_arrived".to_owned(), json!({ "conversation": one.conversation, "wordOf": sara }))];
    assert_eq!(world.trail(held).await, trail);
    let whole = json(world.get(&path(&one, held, "")).send().await.unwrap(), 200).await;
    assert_eq!(whole["message"]["statusEvents"][0]["source"], "OPERATOR");

    let problem = json(world.post(&address, &json!({ "confirmedByUserId": sara })).send().await.unwrap(), 409).await;
    assert_eq!((&problem["code"], &problem["detail"]), (&json!("wrong_state"), &json!("It was sent already.")));
    world.keeps_its_promises().await;
}

#[rstest]
#[case::what_may_have_been_sent("/send-again", Status::Sending, "message.send_again")]
#[case::what_failed("/retry", Status::Failed, "message.retry")]
#[tokio::test]
async fn ac_21_what_goes_again_is_accepted_once_and_only_inside_the_window(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
    #[case] rest: &str,
    #[case] status: Status,
    #[case] action: &str,
) {
    let world = World::on(database).await;
    let one = world.open_conversation("Amal", "971501234567").await;
    let held = status == Status::Sending;
    let (first, late) = (message(&world, &one, status, held).await, message(&world, &one, status, held).await);
    let body = world.decide(&one, first, rest, 202).await;
    is_waiting(&body["message"]);
    assert_eq!((&body["message"]["error"], &body["message"]["outcomeUnknown"]), (&Value::Null, &json!(false)));
    let problem = world.decide(&one, first, rest, 409).await;
    assert_eq!((&problem["code"], &problem["ok"]), (&json!("wrong_state"), &json!(false)));
    assert!(problem["detail"].as_str().unwrap().contains("waiting to be sent"), "{problem}");
    assert_eq!(world.trail(first).await, [(action.to_owned(), json!({ "conversation": one.conversation }))]);

    world.clock.advance(Duration::from_secs(25 * 3600));
    let answer = world.post(&path(&one, late, rest), &json!({})).send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    let problem = json(answer, 422).await;
    assert_eq!((&problem["code"], &problem["requiresTemplate"]), (&json!("window_closed"), &json!(true)));
    assert_eq!(problem["hoursSinceLastInbound"], json!(25.0));
    assert!(world.trail(late).await.is_empty());
    let whole = json(world.get(&path(&one, late, "")).send().await.unwrap(), 200).await;
    assert_eq!(whole["message"]["status"], status.as_str(), "it stands as it stood");
    world.keeps_its_promises().await;
}

#[rstest]
#[tokio::test]
async fn a_template_goes_again_although_the_window_is_shut(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::on(database).await;
    let one = world.silent_conversation("Never", "971500000001").await;
    let send = json!({ "templateName": "renewal", "templateLanguage": "en", "sendAt": world.clock.now() + Duration::from_secs(60) });
    let address = format!("/api/inbox/conversations/{}/messages", one.conversation);
    let body = json(world.post(&address, &send).send().await.unwrap(), 202).await;
    let template = MessageId::new(body["message"]["id"].as_i64().unwrap());
    let body = world.cancel(&one, template, 200).await;
    let error =
        json!({ "class": "CANCELLED", "code": "cancelled", "message": "It was taken back before it was sent." });
    assert_eq!((&body["message"]["status"], &body["message"]["error"]), (&json!("FAILED"), &error));
    let body = world.decide(&one, template, "/retry", 202).await;
    is_waiting(&body["message"]);
    world.keeps_its_promises().await;
}

#[rstest]
#[tokio::test]
async fn what_waits_can_be_taken_back_and_what_is_under_way_cannot(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::on(database).await;
    let one = world.open_conversation("Amal", "971501234567").await;
    let waiting = message(&world, &one, Status::Queued, false).await;
    let body = world.cancel(&one, waiting, 200).await;
    assert_eq!(body["message"]["error"]["class"], "CANCELLED");
    assert_eq!(world.trail(waiting).await[0].0, "message.cancel");
    for (status, held, words) in [
        (Status::Sending, false, "It is already on its way and cannot be taken back."),
        (Status::Sending, true, "It may have been sent already and cannot be taken back."),
        (Status::Read, false, "It was delivered and read already."),
        (Status::Failed, false, "It was not sent. Try it again instead."),
    ] {
        let id = message(&world, &one, status, held).await;
        let problem = world.cancel(&one, id, 409).await;
        assert_eq!((&problem["code"], &problem["detail"]), (&json!("wrong_state"), &json!(words)));
        assert!(world.trail(id).await.is_empty());
    }
    world.keeps_its_promises().await;
}

#[rstest]
#[tokio::test]
async fn nobody_decides_who_may_only_read_or_about_what_is_not_there(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::on(database).await;
    let one = world.open_conversation("Amal", "971501234567").await;
    let other = world.open_conversation("Bob", "971501234568").await;
    let held = message(&world, &one, Status::Sending, true).await;
    for rest in ["/it-arrived", "/send-again", "/retry"] {
        let viewer = world.anybody(Method::POST, &path(&one, held, rest)).bearer_auth(VIEWER);
        assert_eq!(json(viewer.send().await.unwrap(), 403).await["code"], "role_too_low");
        let sara = json!({ "confirmedByUserId": world.user("sara@example.com").await });
        for missing in [path(&other, held, rest), path(&one, MessageId::new(99_999), rest)] {
            assert_eq!(json(world.post(&missing, &sara).send().await.unwrap(), 404).await["code"], "not_found");
        }
    }
    let viewer = world.anybody(Method::DELETE, &path(&one, held, "")).bearer_auth(VIEWER);
    assert_eq!(json(viewer.send().await.unwrap(), 403).await["code"], "role_too_low");
    world.cancel(&other, held, 404).await;
    assert_eq!(world.anybody(Method::DELETE, &path(&one, held, "")).send().await.unwrap().status(), 401);
    world.keeps_its_promises().await;
}

#[rstest]
#[tokio::test]
async fn the_buttons_of_the_page_decide_without_the_script(
    #[values(Database::Sqlite, Database::Postgres)] database: Database,
) {
    let world = World::on(database).await;
    let one = world.open_conversation("Amal", "971501234567").await;
    let (arrived, again) =
        (message(&world, &one, Status::Sending, true).await, message(&world, &one, Status::Sending, true).await);
    let (failed, waiting) =
        (message(&world, &one, Status::Failed, false).await, message(&world, &one, Status::Queued, false).await);
    let sara = world.browser("sara@example.com").await;
    let csrf = sara.csrf().await;
    let thread = format!("/inbox/{}", one.conversation);
    let page = sara.get(&format!("{thread}?view=unassigned")).send().await.unwrap().text().await.unwrap();
    for (id, decision, word) in [
        (arrived, "it-arrived", "It arrived"),
        (again, "send-again", "Send again"),
        (failed, "retry", "Try again"),
        (waiting, "cancel", "Cancel"),
    ] {
        let action = format!("{thread}/messages/{id}/{decision}");
        assert!(page.contains(&format!("action=\"{action}?view=unassigned\"")) && page.contains(word), "{page}");
        let nobody = sara.post(&action, "").send().await.unwrap();
        assert_eq!(nobody.status(), 403, "not without the page's own token");
        let address = format!("{action}?view=unassigned");
        let answer = sara.post(&address, &format!("csrf={csrf}")).send().await.unwrap();
        assert_eq!(answer.status(), 303);
        assert_eq!(answer.headers()["location"], format!("{thread}?view=unassigned#m{id}").as_str());
        let twice = sara.post(&address, &format!("csrf={csrf}")).send().await.unwrap();
        assert_eq!(twice.status(), 409);
        let page = twice.text().await.unwrap();
        assert!(page.contains("role=\"alert\"") && page.contains("data-testid=\"log\""), "the thread, with a sentence");
    }
    let page = sara.get(&thread).send().await.unwrap().text().await.unwrap();
    assert!(page.contains("Sent, on the word of Sara") && page.contains("Taken back before it was sent"));
    assert!(!page.contains("it-arrived"));
    let detail = json!({ "conversation": one.conversation, "wordOf": world.user("sara@example.com").await });
    assert_eq!(world.trail(arrived).await, [("message.it_arrived".to_owned(), detail)]);
    let unknown = sara.post(&format!("{thread}/messages/{failed}/explode"), &format!("csrf={csrf}")).send().await;
    assert_eq!(unknown.unwrap().status(), 404);
    world.keeps_its_promises().await;
}

#[tokio::test]
async fn buttons_stand_only_where_there_is_something_to_decide_and_only_before_those_who_may() {
    let world = World::on(Database::Sqlite).await;
    let one = world.open_conversation("Amal", "971501234567").await;
    let mut ids = Vec::new();
    for status in [Status::Queued, Status::Sending, Status::Sent, Status::Delivered, Status::Read, Status::Failed] {
        ids.push(message(&world, &one, status, false).await);
    }
    ids.push(message(&world, &one, Status::Sending, true).await);
    let names = ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let part = format!("/inbox/{}/part?open=1&messages={names}", one.conversation);
    let buttons = async |email: &str| -> Vec<usize> {
        let piece = json(world.browser(email).await.get(&part).send().await.unwrap(), 200).await;
        let bubbles = piece["messages"].as_array().unwrap().iter();
        bubbles.map(|html| html.as_str().unwrap().matches("data-decide").count()).collect()
    };
    assert_eq!(buttons("sara@example.com").await, [1, 0, 0, 0, 0, 1, 2]);
    assert_eq!(buttons("vera@example.com").await, [0; 7]);
    let arabic = world.browser("sara@example.com").await;
    let page = arabic.get(&format!("/inbox/{}?lang=ar", one.conversation)).send().await.unwrap().text().await.unwrap();
    for word in ["وصلت", "أرسلها ثانيةً", "حاول مجدداً", "إلغاء"] {
        assert!(page.contains(word), "{word}");
    }
}
