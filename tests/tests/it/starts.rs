//! A fleet that is started the wrong way round: every role waits for what it stands on, says for what, and begins by itself.

use crate::ROOST;
use crate::outages::{BACK_WITHIN, QUICK_RECONNECT, a_send_goes_through};
use roost_tests::{Stack, System, SystemOptions, wait};
use simulator::StatusPlan;
use testkit::amqp::PrivateRabbitMq;

/// Against the path of a message, last things first.
const WRONG_WAY_ROUND: [(&str, &str); 4] =
    [("sender", "sender"), ("inbox", "inbox"), ("ingest", "ingest"), ("ingress", "ingress")];
/// Ingress opens no database.
const ON_THE_DATABASE: [&str; 3] = ["sender", "inbox", "ingest"];

const NO_BROKER: (&str, &str) = ("queue", "the broker is away: ");
const NO_SCHEMA: (&str, &str) = ("store", "run `roost migrate`");

/// Waits until `role` names this part and this reason on its `/readyz`, among others.
async fn says_why_not(system: &System, role: &str, (part, reason): (&str, &str)) {
    let said = wait::until("the reason", BACK_WITHIN, async || {
        let reasons = system.not_ready(role).await.unwrap_or_default();
        Ok(reasons.get(part).is_some_and(|told| told.contains(reason)).then_some(()))
    });
    if let Err(error) = said.await {
        let reasons = system.not_ready(role).await;
        panic!("{role}, {part}: {error}: {reasons:?}\n{}", system.last_lines());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_start_before_the_schema_and_the_rabbitmq_broker_say_why_they_wait_and_begin_by_themselves() {
    // Its address is known, and nobody is there.
    let mut broker = PrivateRabbitMq::start().await.unwrap();
    broker.stop().await.unwrap();
    let mut options = SystemOptions::new(Stack::PostgresRabbitMq).with_roles(&WRONG_WAY_ROUND);
    options.more_config = QUICK_RECONNECT.into();
    options.amqp_url = Some(broker.url());
    options.simulator.statuses = StatusPlan::default();
    let mut system = System::start_unready(ROOST, options).await.unwrap();

    for (role, _) in WRONG_WAY_ROUND {
        says_why_not(&system, role, NO_BROKER).await;
    }
    for role in ON_THE_DATABASE {
        says_why_not(&system, role, NO_SCHEMA).await;
    }

    system.migrate().await.unwrap();
    for role in ON_THE_DATABASE {
        let migrated = wait::until("the schema to be seen", BACK_WITHIN, async || {
            Ok((!system.not_ready(role).await?.contains_key(NO_SCHEMA.0)).then_some(()))
        });
        migrated.await.unwrap_or_else(|error| panic!("{role}: {error}\n{}", system.last_lines()));
        says_why_not(&system, role, NO_BROKER).await;
    }

    broker.start_again().await.unwrap();
    system.until_ready().await.unwrap();
    for (role, _) in WRONG_WAY_ROUND {
        assert!(system.process(role).runs().unwrap(), "{role} is the process that was started");
    }
    a_send_goes_through(&system, "351912000441").await;
}
