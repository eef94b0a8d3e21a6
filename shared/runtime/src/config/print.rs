//! The effective configuration, for `roost config check --print`: defaults, file and environment together, secrets masked.

use super::{BlobsPlace, Config, LogFormat, QueuePlace, StorePlace};
use domain::OnUnknown;
use std::fmt::Write;
use url::Url;

/// What stands in place of a secret.
const MASK: &str = "********";

impl Config {
    /// The effective configuration as TOML, with every secret masked.
    pub fn print(&self) -> String {
        let mut out = String::new();
        self.print_tables(&mut out);
        self.print_lists(&mut out);
        out
    }

    fn print_tables(&self, out: &mut String) {
        line(out, "data_dir", &self.data_dir.display().to_string());
        head(out, "[log]");
        let format = match self.log.format {
            LogFormat::Auto => "auto",
            LogFormat::Json => "json",
            LogFormat::Pretty => "pretty",
        };
        line(out, "format", format);
        line(out, "level", &self.log.level);
        head(out, "[store]");
        match &self.store.place {
            StorePlace::Postgres(url) => line(out, "url", &without_password(url.expose())),
            StorePlace::Sqlite(path) => line(out, "url", &format!("sqlite://{}", path.display())),
        }
        plain(out, "max_connections", self.store.max_connections);
        head(out, "[queue]");
        match &self.queue.place {
            QueuePlace::RabbitMq(url) => line(out, "url", &without_password(url.expose())),
            QueuePlace::Embedded(path) => {
                line(out, "url", "embedded");
                let _ = writeln!(out, "# in {}", path.display());
            }
        }
        line(out, "prefix", &self.queue.prefix);
        head(out, "[media]");
        match &self.blobs {
            BlobsPlace::Folder(path) => line(out, "url", &format!("file:{}", path.display())),
        }
        head(out, "[http]");
        line(out, "listen", &self.http.listen.to_string());
        line(out, "admin_listen", &self.http.admin_listen.to_string());
        let limits = &self.http.limits;
        plain(out, "max_connections", limits.connections);
        plain(out, "max_connections_per_ip", limits.connections_per_ip);
        plain(out, "max_body_bytes_in_flight", limits.body_bytes_in_flight);
        plain(out, "head_timeout_ms", limits.head_timeout.as_millis());
        plain(out, "body_timeout_ms", limits.body_timeout.as_millis());
        plain(out, "body_idle_timeout_ms", limits.body_idle_timeout.as_millis());
        plain(out, "idle_timeout_ms", limits.idle_timeout.as_millis());
        plain(out, "request_timeout_ms", limits.request_timeout.as_millis());
        plain(out, "write_timeout_ms", limits.write_timeout.as_millis());
        head(out, "[tuning]");
        for (key, value) in self.tuning.entries() {
            plain(out, key, value);
        }
    }

    fn print_lists(&self, out: &mut String) {
        for source in &self.sources {
            head(out, "[[sources]]");
            line(out, "name", source.name.as_str());
            line(out, "kind", &source.kind);
            let masks = source.secrets.iter().map(|_| format!("{MASK:?}")).collect::<Vec<_>>().join(", ");
            plain(out, "app_secret", format!("[{masks}]"));
            if source.verify_token.is_some() {
                line(out, "verify_token", MASK);
            }
            plain(out, "crm_alias", source.crm_alias);
        }
        for account in &self.accounts {
            head(out, "[[accounts]]");
            line(out, "name", account.name.as_str());
            line(out, "channel", account.channel.as_str());
            line(out, "source", account.source.as_str());
            line(out, "phone_number_id", &account.external_id);
            for (key, value) in [
                ("waba_id", &account.parent_external_id),
                ("portfolio_id", &account.portfolio_id),
                ("display_address", &account.display_address),
            ] {
                if let Some(value) = value {
                    line(out, key, value);
                }
            }
            line(out, "access_token", MASK);
            let (base, version) = account.api_base.rsplit_once('/').unwrap_or((&account.api_base, ""));
            line(out, "api_base", base);
            line(out, "api_version", version);
            plain(out, "rate_per_second", account.rate_per_second);
            plain(out, "pair_interval_ms", account.pair_interval.as_millis());
            plain(out, "pair_burst", account.pair_burst);
            line(out, "on_unknown", if account.on_unknown == OnUnknown::Hold { "hold" } else { "resend" });
        }
        for user in &self.users {
            head(out, "[[users]]");
            line(out, "email", &user.email);
            line(out, "name", &user.name);
            line(out, "password_hash", MASK);
            line(out, "role", user.role.as_str());
        }
        for token in &self.api_tokens {
            head(out, "[[api_tokens]]");
            line(out, "name", &token.name);
            line(out, "sha256", MASK);
            line(out, "role", token.role.as_str());
        }
    }
}

fn head(out: &mut String, heading: &str) {
    let _ = writeln!(out, "\n{heading}");
}

fn line(out: &mut String, key: &str, value: &str) {
    let _ = writeln!(out, "{key} = {value:?}");
}

fn plain(out: &mut String, key: &str, value: impl std::fmt::Display) {
    let _ = writeln!(out, "{key} = {value}");
}

/// A URL that can be shown.
fn without_password(url: &str) -> String {
    match Url::parse(url) {
        Ok(mut parsed) => {
            if parsed.password().is_some() && parsed.set_password(Some(MASK)).is_err() {
                return MASK.into();
            }
            // Some drivers take the password as a parameter.
            if parsed.query().is_some_and(|query| query.contains("password")) {
                parsed.set_query(Some(MASK));
            }
            parsed.into()
        }
        Err(_) => MASK.into(),
    }
}
