//! Contacts, leads and conversations, as webhooks bring them about.

use crate::said::{PHONE_NUMBER_ID, RITA, body, one_text, text, value, value_for};
use crate::support::{DEAD_LETTERS, MESSAGES, Stack, UNREAD, World, account};
use rstest::rstest;
use serde_json::json;
use std::time::Duration;

const DAY: Duration = Duration::from_secs(86_400);

/// A text from a person with a user id, and a number if `from` gives one.
fn from_user(from: Option<&str>, id: &str) -> String {
    let mut message = text(from.unwrap_or_default(), id, "hello", 0);
    message["from_user_id"] = json!("PT.48151623420001");
    if from.is_none() {
        message.as_object_mut().unwrap().remove("from");
    }
    body(&[value(&[message], &[])])
}

#[rstest]
#[case::sqlite_embedded(Stack::SqliteEmbedded)]
#[case::postgres_rabbitmq(Stack::PostgresRabbitMq)]
#[tokio::test(flavor = "multi_thread")]
async fn ac_28_a_person_known_by_number_today_and_by_user_id_tomorrow_keeps_one_conversation(#[case] stack: Stack) {
    let world = World::fresh(stack).await;
    let ingest = world.start("a");
    for (n, said) in
        [from_user(Some(RITA), "1"), from_user(None, "2"), one_text(RITA, "3", "hello", 0)].iter().enumerate()
    {
        world.post(&[said]).await;
        world.until(MESSAGES, &[&(n + 1).to_string()]).await;
    }
    assert_eq!(world.texts(UNREAD).await, ["3"]);
    let contact = "SELECT full_name || ' ' || phone_e164 FROM contacts";
    assert_eq!(world.texts(contact).await, [format!("Person {RITA} +{RITA}")]);
    let conversation = "SELECT external_id || ' ' || wa_user_wa_id FROM conversations";
    assert_eq!(world.texts(conversation).await, [format!("{PHONE_NUMBER_ID}_{RITA} {RITA}")]);
    let identities = "SELECT kind || ' ' || scope_key FROM contact_identities ORDER BY kind DESC";
    assert_eq!(world.texts(identities).await, ["WA_ID ", "WA_BSUID portfolio"]);
    ingest.stopped().await;
}

#[rstest]
#[case::sqlite_embedded(Stack::SqliteEmbedded)]
#[case::postgres_rabbitmq(Stack::PostgresRabbitMq)]
#[tokio::test(flavor = "multi_thread")]
async fn two_numbers_of_ours_are_two_conversations_of_one_contact(#[case] stack: Stack) {
    let mut world = World::fresh(stack).await;
    world.accounts.push(account("support", "106540352242923", "meta"));
    let other = body(&[value_for("106540352242923", &[text(RITA, "b", "hello", 1)], &[])]);
    world.post(&[&one_text(RITA, "a", "hello", 0), &other]).await;
    let ingest = world.start("a");
    world.until(UNREAD, &["1", "1"]).await;
    assert_eq!(world.texts("SELECT CAST(count(*) AS TEXT) FROM contacts").await, ["1"]);
    assert_eq!(world.texts("SELECT CAST(count(*) AS TEXT) FROM leads").await, ["1"]);
    ingest.stopped().await;
}

#[rstest]
#[case::sqlite_embedded(Stack::SqliteEmbedded)]
#[case::postgres_rabbitmq(Stack::PostgresRabbitMq)]
#[tokio::test(flavor = "multi_thread")]
async fn a_lead_is_continued_until_it_is_closed_or_thirty_days_old_also_by_a_process_that_remembers_it(
    #[case] stack: Stack,
) {
    let world = World::fresh(stack).await;
    let ingest = world.start("a");
    let leads = "SELECT CAST(count(*) AS TEXT) || ' ' || CAST(max(id) AS TEXT) FROM leads";
    let of_last = "SELECT CAST(lead_id AS TEXT) FROM messages ORDER BY id DESC LIMIT 1";
    for (n, id) in ["1", "2"].iter().enumerate() {
        world.post(&[&one_text(RITA, id, "hello", 0)]).await;
        world.until(MESSAGES, &[&(n + 1).to_string()]).await;
    }
    assert_eq!(world.texts(leads).await, ["1 1"]);
    world.run("UPDATE leads SET stage = 'COMPLETED_WON', closed_at = updated_at").await;
    // Told again it opens nothing; something new does.
    world.post(&[&one_text(RITA, "2", "hello", 0)]).await;
    world.until_empty().await;
    assert_eq!(world.texts(leads).await, ["1 1"]);
    world.post(&[&one_text(RITA, "3", "hello", 0)]).await;
    world.until(MESSAGES, &["3"]).await;
    assert_eq!((world.texts(leads).await, world.texts(of_last).await), (vec!["2 2".to_owned()], vec!["2".to_owned()]));
    assert_eq!(world.texts("SELECT CAST(lead_id AS TEXT) FROM conversations").await, ["2"]);
    world.clock.advance(31 * DAY);
    world.post(&[&one_text(RITA, "4", "hello", 31 * 86_400)]).await;
    world.until(MESSAGES, &["4"]).await;
    assert_eq!((world.texts(leads).await, world.texts(of_last).await), (vec!["3 3".to_owned()], vec!["3".to_owned()]));
    ingest.stopped().await;
}

#[rstest]
#[case::sqlite_embedded(Stack::SqliteEmbedded)]
#[case::postgres_rabbitmq(Stack::PostgresRabbitMq)]
#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_that_somebody_gave_to_another_contact_goes_on_there(#[case] stack: Stack) {
    let world = World::fresh(stack).await;
    world.post(&[&one_text(RITA, "a", "one", 0)]).await;
    let ingest = world.start("a");
    world.until(MESSAGES, &["1"]).await;
    world.run("INSERT INTO contacts (id, full_name, created_at, updated_at) SELECT 4711, 'Merged', created_at, updated_at FROM contacts").await;
    world.run("UPDATE conversations SET contact_id = 4711").await;

    world.post(&[&one_text(RITA, "b", "two", 1)]).await;
    world.until(MESSAGES, &["2"]).await;
    world.post(&[&one_text(RITA, "c", "three", 2)]).await;
    world.until(MESSAGES, &["3"]).await;
    let whose = "SELECT body || ' ' || CASE contact_id WHEN 4711 THEN 'moved' ELSE 'own' END FROM messages ORDER BY occurred_at";
    assert_eq!(world.texts(whose).await, ["one own", "two moved", "three moved"]);
    assert_eq!(world.texts(DEAD_LETTERS).await, ["0"]);
    ingest.stopped().await;
}

#[rstest]
#[case::sqlite_embedded(Stack::SqliteEmbedded)]
#[case::postgres_rabbitmq(Stack::PostgresRabbitMq)]
#[tokio::test(flavor = "multi_thread")]
async fn what_a_process_remembers_and_somebody_deleted_is_asked_for_again(#[case] stack: Stack) {
    let world = World::fresh(stack).await;
    let ingest = world.start("a");
    world.post(&[&one_text(RITA, "1", "hello", 0)]).await;
    world.until(MESSAGES, &["1"]).await;
    world.run("DELETE FROM conversations").await;
    world.post(&[&one_text(RITA, "2", "hello", 0)]).await;
    world.until("SELECT provider_message_id FROM messages", &["2"]).await;
    for everything in
        ["DELETE FROM conversations", "DELETE FROM leads", "DELETE FROM contact_identities", "DELETE FROM contacts"]
    {
        world.run(everything).await;
    }
    world.post(&[&one_text(RITA, "3", "hello", 0), &one_text("351912000444", "4", "hello", 0)]).await;
    world.until("SELECT provider_message_id FROM messages ORDER BY 1", &["3", "4"]).await;
    assert_eq!(world.texts(DEAD_LETTERS).await, ["0"]);
    assert_eq!(world.texts(UNREAD).await, ["1", "1"]);
    ingest.stopped().await;
}

#[rstest]
#[case::sqlite_embedded(Stack::SqliteEmbedded)]
#[case::postgres_rabbitmq(Stack::PostgresRabbitMq)]
#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_is_unknown_or_of_another_source_gets_nothing_and_the_item_can_be_replayed(
    #[case] stack: Stack,
) {
    let mut world = World::fresh(stack).await;
    let unknown = body(&[value_for("999", &[text(RITA, "a", "hello", 0)], &[crate::said::status("x", "read", 0)])]);
    let ours = one_text(RITA, "b", "hello", 0);
    let mixed =
        body(&[value_for("999", &[text(RITA, "c", "hello", 0)], &[]), value(&[text(RITA, "d", "hello", 0)], &[])]);
    let frames = vec![
        world.frame(unknown.as_bytes()),
        // Signed by another app, for an account of ours.
        world.frame_of("other-app", ours.as_bytes()),
        world.frame_of("gone-source", ours.as_bytes()),
        world.frame(mixed.as_bytes()),
    ];
    world.publish(frames.clone()).await;
    let ingest = world.start("a");
    world.until("SELECT provider_message_id FROM messages", &["d"]).await;
    world.until_empty().await;
    let classes = "SELECT error_class || ' ' || source FROM dead_letters ORDER BY 1";
    let want = [
        "UNKNOWN_ACCOUNT meta",
        "UNKNOWN_ACCOUNT meta",
        "UNKNOWN_ACCOUNT meta",
        "UNKNOWN_ACCOUNT other-app",
        "UNKNOWN_SOURCE gone-source",
    ];
    assert_eq!(world.texts(classes).await, want);
    assert_eq!(
        world.texts("SELECT outcome FROM webhook_events ORDER BY outcome").await,
        ["DEAD", "DEAD", "DEAD", "PARTIAL"]
    );
    let bodies = "SELECT CAST(count(*) AS TEXT) FROM dead_letters WHERE replayable AND length(body) > 0 AND request_id IS NOT NULL";
    assert_eq!(world.texts(bodies).await, ["5"]);
    ingest.stopped().await;

    // Configured since, and replayed: stored, and the dead letters of those webhooks are closed.
    world.accounts.push(account("late", "999", "meta"));
    let ingest = world.start("b");
    let replayed = frames.into_iter().map(|frame| match frame {
        domain::wire::Frame::Webhook(mut webhook) => {
            webhook.head.replay = true;
            domain::wire::Frame::Webhook(webhook)
        }
        beat => beat,
    });
    world.publish(replayed.collect()).await;
    world.until("SELECT provider_message_id FROM messages ORDER BY 1", &["a", "c", "d"]).await;
    world.until_empty().await;
    let open = "SELECT error_class || ' ' || CAST(attempts AS TEXT) FROM dead_letters WHERE state = 'OPEN' ORDER BY 1";
    assert_eq!(
        world.texts(open).await,
        ["UNKNOWN_ACCOUNT 2", "UNKNOWN_SOURCE 2"],
        "what still cannot go anywhere died again"
    );
    ingest.stopped().await;
}

#[rstest]
#[case::sqlite_embedded(Stack::SqliteEmbedded)]
#[case::postgres_rabbitmq(Stack::PostgresRabbitMq)]
#[tokio::test(flavor = "multi_thread")]
async fn the_window_opens_for_what_a_person_said_and_only_grows(#[case] stack: Stack) {
    let world = World::fresh(stack).await;
    let ingest = world.start("a");
    let windows = "SELECT CAST(count(*) AS TEXT) FROM conversations WHERE window_expires_at IS NOT NULL";
    let mut reaction = text(RITA, "1", "-", 0);
    reaction["type"] = json!("reaction");
    reaction["reaction"] = json!({ "message_id": "wamid.x", "emoji": "👍" });
    world.post(&[&body(&[value(&[reaction], &[])])]).await;
    world.until(MESSAGES, &["1"]).await;
    assert_eq!(world.texts(windows).await, ["0"], "a reaction opens nothing");
    world.post(&[&one_text(RITA, "2", "new", 50)]).await;
    world.until(windows, &["1"]).await;
    world.post(&[&one_text(RITA, "3", "older", 20)]).await;
    world.until(MESSAGES, &["3"]).await;
    let fits = "SELECT CAST(count(*) AS TEXT) FROM conversations c JOIN messages m ON m.provider_message_id = '2'
        WHERE c.last_inbound_at = m.occurred_at AND c.last_message_id = m.id AND c.last_message_at = m.occurred_at";
    assert_eq!(world.texts(fits).await, ["1"], "the latest by the provider's time stands");
    world.holds().await;
    ingest.stopped().await;
}
