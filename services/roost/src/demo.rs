//! `--demo`: a provider and a customer's phone in the same process, wired to an account of their own.

use crate::Failure;
use domain::{AccountName, Secret, SourceName};
use runtime::Config;
use runtime::config::{account, source};
use simulator::{AccountOptions, PhoneOptions, Simulator, SimulatorOptions};
use std::net::SocketAddr;

/// Name of the demo's source and account.
const NAME: &str = "demo";
const PHONE_NUMBER_ID: &str = "106540352242922";
const DISPLAY: &str = "+971 4 555 0100";

/// Starts the simulator and adds its source and account to the configuration. Its secrets are fresh at every start:
/// nobody outside this process needs them.
pub(crate) async fn start(config: &mut Config, front: SocketAddr) -> Result<Simulator, Failure> {
    let name: SourceName = NAME.parse()?;
    let account_name: AccountName = NAME.parse()?;
    if config.source(NAME).is_some() || config.account(&account_name).is_some() {
        return Err(Failure::Usage(format!(
            "--demo adds a source and an account called `{NAME}`, and the configuration has one already: rename yours, or leave out --demo."
        )));
    }
    let (app_secret, token) = (Secret::new(random()), Secret::new(random()));
    let base = format!("http://{}", reachable(front));
    let options = SimulatorOptions {
        app_secret: app_secret.clone(),
        accounts: vec![AccountOptions {
            display_phone_number: DISPLAY.to_owned(),
            ..AccountOptions::new(PHONE_NUMBER_ID, token.expose())
        }],
        webhook_urls: vec![format!("{base}/webhooks/{NAME}")],
        phone: Some(PhoneOptions { inbox_url: Some(format!("{base}/inbox")), ..PhoneOptions::default() }),
        ..SimulatorOptions::demo()
    };
    let simulator = Simulator::start(options).await?;
    let mut demo_source = source::meta(name.clone(), vec![app_secret], Some(Secret::new(random())));
    demo_source.crm_alias = config.sources.is_empty();
    let api_base = account::api_base(&simulator.url(), account::GRAPH_VERSION);
    let mut demo_account = account::whatsapp(account_name, name, PHONE_NUMBER_ID.to_owned(), api_base, token);
    demo_account.display_address = Some(DISPLAY.to_owned());
    config.sources.push(demo_source);
    config.accounts.push(demo_account);
    Ok(simulator)
}

/// 32 random bytes in hex.
pub(crate) fn random() -> String {
    hex::encode(rand::random::<[u8; 32]>())
}

/// An address a browser on this machine can open.
pub(crate) fn reachable(listen: SocketAddr) -> SocketAddr {
    if listen.ip().is_unspecified() { SocketAddr::from(([127, 0, 0, 1], listen.port())) } else { listen }
}
