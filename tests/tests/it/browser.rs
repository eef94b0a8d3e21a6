//! The page as a person uses it, in headless Chromium, on the demo's own phone and inbox.

use crate::ROOST;
use anyhow::{Context, Result};
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use roost_tests::{Process, wait};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(20);

/// chromedriver and one window; both end with this.
struct Browser {
    driver: Child,
    _profile: tempfile::TempDir,
}

impl Browser {
    async fn start() -> Result<(Self, Client)> {
        let program = std::env::var("ROOST_TEST_CHROMEDRIVER").unwrap_or_else(|_| "chromedriver".into());
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let driver = Command::new(&program)
            .arg(format!("--port={port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("{program}: run these tests through tests/run, or install chromium-driver"))?;
        let profile = tempfile::tempdir()?;
        let browser = Self { driver, _profile: profile };
        let options = json!({"goog:chromeOptions": {"args": [
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync", "--window-size=1280,860", "--lang=en",
            format!("--user-data-dir={}", browser._profile.path().display()),
        ]}});
        let capabilities = options.as_object().cloned().unwrap_or_default();
        let client = wait::until("chromedriver", SOON, async || {
            let mut builder = ClientBuilder::new(HttpConnector::new());
            builder.capabilities(capabilities.clone());
            Ok(builder.connect(&format!("http://127.0.0.1:{port}")).await.ok())
        })
        .await?;
        Ok((browser, client))
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Ends the browser with it.
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// `roost up --demo` as a newcomer starts it, and the addresses it prints.
struct Demo {
    process: Process,
    login: String,
    inbox: String,
    phone: String,
    _folder: tempfile::TempDir,
}

impl Demo {
    async fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let env = [("ROOST_HTTP_LISTEN", "127.0.0.1:0"), ("ROOST_HTTP_ADMIN_LISTEN", "127.0.0.1:0")];
        let process = Process::start("demo", Path::new(ROOST), &["up", "--demo"], &env, folder.path())?;
        let printed = wait::until("the ready lines", SOON, async || {
            let printed = process.printed();
            Ok(printed.contains("Ctrl+C stops").then_some(printed))
        })
        .await
        .with_context(|| process.printed())?;
        let address = |label: &str| -> Result<String> {
            let line =
                printed.lines().find(|line| line.trim_start().starts_with(label)).with_context(|| printed.clone())?;
            Ok(line.split_whitespace().find(|word| word.starts_with("http://")).context("an address")?.to_owned())
        };
        let (login, inbox, phone) = (address("Log in")?, address("Inbox")?, address("Customer's phone")?);
        Ok(Self { process, login, inbox, phone, _folder: folder })
    }
}

async fn appears(client: &Client, css: &str) -> fantoccini::elements::Element {
    let found = client.wait().at_most(SOON).for_element(Locator::Css(css)).await;
    match found {
        Ok(element) => element,
        Err(error) => panic!("{css}: {error}\n{}", client.source().await.unwrap_or_default()),
    }
}

async fn text_of(client: &Client, css: &str) -> String {
    client
        .execute("return document.querySelector(arguments[0])?.textContent ?? ''", vec![json!(css)])
        .await
        .ok()
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ac_10_and_11_a_message_appears_and_ticks_move_in_the_browser_without_a_reload() {
    let demo = Demo::start().await.unwrap();
    let (_browser, client) = Browser::start().await.unwrap();
    client.goto(&demo.login).await.unwrap();
    appears(&client, "[data-testid=rows]").await;
    // The login link works once.
    runtime::tls::install_provider();
    let again = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let answer = again.get(&demo.login).send().await.unwrap();
    assert!(!answer.headers().contains_key("set-cookie"), "the link is used up");
    client.execute("window.sameDocument = true", vec![]).await.unwrap();

    // The customer writes on the phone, in another window.
    let inbox_window = client.window().await.unwrap();
    let phone_window = client.new_window(true).await.unwrap().handle;
    client.switch_to_window(phone_window.clone()).await.unwrap();
    client.goto(&demo.phone).await.unwrap();
    appears(&client, "[data-testid=phone-text]").await.send_keys("Is the shop open today?").await.unwrap();
    appears(&client, "[data-testid=phone-send]").await.click().await.unwrap();

    client.switch_to_window(inbox_window.clone()).await.unwrap();
    let row = appears(&client, "[data-testid=row]").await;
    assert!(row.text().await.unwrap().contains("Is the shop open today?"));
    assert_eq!(
        client.execute("return window.sameDocument === true", vec![]).await.unwrap(),
        Value::Bool(true),
        "no reload"
    );
    row.click().await.unwrap();
    appears(&client, "[data-testid=message]").await;
    appears(&client, "[data-testid=reply-form] textarea").await.send_keys("Yes, until 18:00").await.unwrap();
    appears(&client, "[data-testid=send]").await.click().await.unwrap();
    appears(&client, "[data-status]:not([data-status=RECEIVED])").await;
    // The other bubble keeps its identity while the ticks of this one move.
    client
        .execute(
            "window.other = document.querySelector('[data-status=RECEIVED]'); window.other.mark = 'the same';",
            vec![],
        )
        .await
        .unwrap();
    appears(&client, "[data-status=READ]").await;
    let same = client
        .execute("return document.contains(window.other) && window.other.mark === 'the same'", vec![])
        .await
        .unwrap();
    assert_eq!(same, Value::Bool(true), "other bubbles are not rendered again");
    let name = client
        .execute("const t = document.querySelector('[data-status=READ] [data-testid=tick]'); return (t.getAttribute('aria-label') || t.textContent || '').toLowerCase()", vec![])
        .await
        .unwrap();
    assert!(name.as_str().unwrap_or_default().contains("read"), "{name}");

    // A second message, while the thread is open: it joins the thread by itself.
    client.switch_to_window(phone_window).await.unwrap();
    appears(&client, "[data-testid=phone-text]").await.send_keys("Thank you!").await.unwrap();
    appears(&client, "[data-testid=phone-send]").await.click().await.unwrap();
    client.switch_to_window(inbox_window).await.unwrap();
    let joined = wait::until("the second message in the thread", SOON, async || {
        Ok(text_of(&client, "[data-testid=log]").await.contains("Thank you!").then_some(()))
    });
    joined.await.unwrap();
    client.close().await.unwrap();
    assert!(demo.process.id().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ac_39_message_text_is_inert_in_the_browser_and_no_console_error_appears() {
    let demo = Demo::start().await.unwrap();
    let (_browser, client) = Browser::start().await.unwrap();
    client.goto(&demo.phone).await.unwrap();
    let hostile =
        "<img src=x onerror=\"window.owned=1\"><script>window.owned=1</script> javascript:alert(1) \u{202e}abc";
    appears(&client, "[data-testid=phone-text]").await.send_keys(hostile).await.unwrap();
    appears(&client, "[data-testid=phone-send]").await.click().await.unwrap();
    client.goto(&demo.login).await.unwrap();
    appears(&client, "[data-testid=row]").await.click().await.unwrap();
    let shown = wait::until("the hostile text", SOON, async || {
        Ok(text_of(&client, "[data-testid=log]").await.contains("<script>window.owned=1</script>").then_some(()))
    });
    shown.await.unwrap();
    assert_eq!(client.execute("return window.owned ?? null", vec![]).await.unwrap(), Value::Null);
    runtime::tls::install_provider();
    let answer = reqwest::Client::builder().no_proxy().build().unwrap().get(&demo.inbox).send().await.unwrap();
    let policy = answer.headers()["content-security-policy"].to_str().unwrap();
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    client.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ac_36_at_375_pixels_nothing_scrolls_sideways_in_the_browser() {
    let demo = Demo::start().await.unwrap();
    let (_browser, client) = Browser::start().await.unwrap();
    client.set_window_size(500, 667).await.unwrap();
    client.goto(&demo.phone).await.unwrap();
    appears(&client, "[data-testid=phone-text]")
        .await
        .send_keys("A word that is long: ".to_owned().as_str())
        .await
        .unwrap();
    appears(&client, "[data-testid=phone-text]").await.send_keys(&"x".repeat(300)).await.unwrap();
    appears(&client, "[data-testid=phone-send]").await.click().await.unwrap();
    client.goto(&demo.login).await.unwrap();
    appears(&client, "[data-testid=row]").await;
    // Chromium's windows are at least 500 pixels wide; a frame can be narrower.
    let address = client.current_url().await.unwrap();
    for path in [address.as_str().to_owned(), format!("{}?lang=ar", demo.inbox)] {
        client.goto(&path).await.unwrap();
        let wide = client
            .execute(
                "document.body.style.width = '375px'; return document.documentElement.scrollWidth > window.innerWidth",
                vec![],
            )
            .await
            .unwrap();
        assert_eq!(wide, Value::Bool(false), "{path}");
    }
    client.close().await.unwrap();
}
