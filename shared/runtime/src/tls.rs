//! Which cryptography rustls uses, decided in one place.

use std::sync::Once;

static INSTALLED: Once = Once::new();

/// Makes ring the process's provider of cryptography. Call it before the first TLS connection; calling it again does
/// nothing. reqwest panics without it, and two providers in one process would make rustls refuse to choose.
pub fn install_provider() {
    INSTALLED.call_once(|| {
        if rustls::crypto::ring::default_provider().install_default().is_err() {
            tracing::debug!("A rustls provider was installed before; it stays");
        }
    });
}
