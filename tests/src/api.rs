//! The API as a client of the CRM's kind sees it.

use anyhow::{Context, Result, bail};
use reqwest::{Client, Method, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

/// A client with a token.
#[derive(Clone, Debug)]
pub struct Api {
    client: Client,
    base: String,
    token: String,
}

/// A row of the conversation list, as far as tests look at it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Conversation {
    /// Its id.
    pub id: i64,
    /// Whose it is.
    pub contact: Contact,
    /// Inbound messages nobody has opened.
    pub unread_count: i64,
}

/// A contact, as far as tests look at it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Contact {
    /// Its id.
    pub id: i64,
    /// Its name, where one is known.
    pub full_name: Option<String>,
    /// Its phone, where one is known.
    pub phone: Option<String>,
}

/// A message, as far as tests look at it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Message {
    /// Its id.
    pub id: i64,
    /// INBOUND or OUTBOUND.
    pub direction: String,
    /// Its text.
    pub body: Option<String>,
    /// How far it has come.
    pub status: String,
    /// The provider's id.
    pub provider_message_id: Option<String>,
}

impl Api {
    /// A client for `base` with `token`.
    pub fn new(base: &str, token: &str) -> Self {
        let client = Client::builder().no_proxy().build().unwrap_or_default();
        Self { client, base: base.to_owned(), token: token.to_owned() }
    }

    /// One request, with a JSON body where there is one.
    /// # Errors
    /// When no answer comes.
    pub async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Response> {
        let mut request = self.client.request(method, format!("{}{path}", self.base)).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(body);
        }
        Ok(request.send().await?)
    }

    async fn json(&self, method: Method, path: &str, body: Option<&Value>) -> Result<(StatusCode, Value)> {
        let answer = self.call(method, path, body).await?;
        let status = answer.status();
        let text = answer.text().await?;
        let value = serde_json::from_str(&text).with_context(|| format!("{path} answered {status}: {text}"))?;
        Ok((status, value))
    }

    /// The conversation list.
    /// # Errors
    /// When the answer is not one.
    pub async fn conversations(&self) -> Result<Vec<Conversation>> {
        let (status, mut value) = self.json(Method::GET, "/api/inbox/conversations?channel=all", None).await?;
        if status != StatusCode::OK {
            bail!("conversations: {status} {value}");
        }
        Ok(serde_json::from_value(value["conversations"].take())?)
    }

    /// The conversation with the contact of that phone (E.164), if there is one.
    /// # Errors
    /// When the list cannot be had.
    pub async fn conversation_with(&self, phone: &str) -> Result<Option<Conversation>> {
        Ok(self.conversations().await?.into_iter().find(|row| row.contact.phone.as_deref() == Some(phone)))
    }

    /// The newest messages of a conversation, in the order they are shown.
    /// # Errors
    /// When the answer is not one.
    pub async fn messages(&self, conversation: i64) -> Result<Vec<Message>> {
        let (status, mut value) =
            self.json(Method::GET, &format!("/api/inbox/conversations/{conversation}"), None).await?;
        if status != StatusCode::OK {
            bail!("conversation {conversation}: {status} {value}");
        }
        let messages = if value["messages"].is_array() {
            value["messages"].take()
        } else {
            value["conversation"]["messages"].take()
        };
        Ok(serde_json::from_value(messages)?)
    }

    /// Sends a text; the answer as it is.
    /// # Errors
    /// When no answer comes.
    pub async fn send_text(&self, conversation: i64, text: &str, client_id: &str) -> Result<(StatusCode, Value)> {
        let body = json!({"text": text, "clientMessageId": client_id});
        self.json(Method::POST, &format!("/api/inbox/conversations/{conversation}/messages"), Some(&body)).await
    }
}
