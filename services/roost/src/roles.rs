//! Starts the roles: each gets what it needs and nothing more.

use crate::cli::Role;
use crate::foundation::Foundation;
use crate::front::Front;
use anyhow::Result;
use dispatch::Dispatcher;
use inbox::Inbox;
use ingress::Ingress;
use runtime::config::ApiToken;
use runtime::http_client::{Http, HttpOptions};
use runtime::http_server::Server;
use runtime::shutdown::Roles;
use std::sync::Arc;
use tokio_util::task::TaskTracker;

/// Starts `roles` on `foundation`; the ones that answer HTTP do so on `listener`.
pub(crate) async fn start(
    foundation: &Foundation,
    roles: &[Role],
    listener: Server,
    running: &mut Roles,
    login: Option<String>,
    own_token: Option<ApiToken>,
) -> Result<()> {
    let config = &foundation.config;
    let accounts: Arc<[domain::Account]> = config.accounts.clone().into();
    let stop = running.stop();
    let mut front = Front { health: foundation.health.clone(), ingress: None, inbox: None };
    let intake = TaskTracker::new();

    let dispatcher = foundation.store.as_ref().map(|store| Dispatcher::new(foundation.queue.clone(), store.clone()));
    for role in roles {
        match role {
            Role::Ingress => {
                let deps = ingress::Deps {
                    sources: config.sources.clone().into(),
                    publisher: foundation.queue.publisher(),
                    blobs: foundation.blobs.clone(),
                    clock: foundation.clock.clone(),
                    metrics: foundation.metrics.clone(),
                    instance: foundation.instance.clone(),
                    tuning: config.tuning.clone(),
                };
                front.ingress = Some(Ingress::start(deps, &stop, &intake)?);
            }
            Role::Ingest => {
                let deps = ingest::Deps {
                    queue: foundation.queue.clone(),
                    store: foundation.store()?,
                    sources: config.sources.clone().into(),
                    accounts: accounts.clone(),
                    clock: foundation.clock.clone(),
                    blobs: foundation.blobs.clone(),
                    tuning: config.tuning.clone(),
                    instance: foundation.instance.clone(),
                    dispatcher: dispatcher.clone().ok_or_else(|| anyhow::anyhow!("ingest needs a store"))?,
                    metrics: foundation.metrics.clone(),
                    health: foundation.health.clone(),
                };
                running.spawn("ingest", ingest::run(deps, stop.clone()));
            }
            Role::Sender => {
                let deps = sender::Deps {
                    queue: foundation.queue.clone(),
                    store: foundation.store()?,
                    accounts: accounts.clone(),
                    clock: foundation.clock.clone(),
                    http: Http::new(&HttpOptions::of(&config.tuning))?,
                    tuning: config.tuning.clone(),
                    instance: foundation.instance.clone(),
                    metrics: foundation.metrics.clone(),
                    health: foundation.health.clone(),
                };
                running.spawn("sender", sender::run(deps, stop.clone()));
            }
            Role::Inbox => {
                let mut tokens = config.api_tokens.clone();
                tokens.extend(own_token.clone());
                let deps = inbox::Deps {
                    store: foundation.store()?,
                    dispatcher: dispatcher.clone().ok_or_else(|| anyhow::anyhow!("the inbox needs a store"))?,
                    accounts: accounts.clone(),
                    users: config.users.clone().into(),
                    api_tokens: tokens.into(),
                    login_once: login.clone(),
                    clock: foundation.clock.clone(),
                    tuning: config.tuning.clone(),
                    metrics: foundation.metrics.clone(),
                    health: foundation.health.clone(),
                };
                front.inbox = Some(Inbox::start(deps, &stop, &intake));
            }
        }
    }
    let drain = config.tuning.drain;
    let serving = stop.clone();
    running.spawn("http", async move {
        listener.serve(front, serving, drain).await;
        // What was handed to the batcher is still published before the process goes.
        intake.close();
        intake.wait().await;
        Ok::<_, std::convert::Infallible>(())
    });
    Ok(())
}
