//! What can be sent, and the exact JSON that sends it.

use domain::outbound::HttpCall;
use domain::{Account, Call, Content, Identity, Outgoing, Recipient, Refused, SendError, SendJob, Window};
use serde::Serialize;

/// Longest text, in characters.
const MAX_TEXT: usize = 4096;

/// Longest template name, in characters.
const MAX_TEMPLATE_NAME: usize = 512;

/// Longest value of a template's variable, in characters: the body it goes into has no more.
const MAX_PARAM: usize = 1024;

/// Most variables of one template.
const MAX_PARAMS: usize = 100;

/// Longest id of a message that is answered, in bytes.
const MAX_REPLY_TO: usize = 512;

/// Whether WhatsApp would take this: limits first, since they hold at any hour, then the 24-hour window.
pub(super) fn check(draft: &Outgoing, window: Window) -> Result<(), Refused> {
    if let Some(id) = &draft.reply_to {
        require(!id.trim().is_empty() && id.len() <= MAX_REPLY_TO, "replyTo", || {
            format!("must be the id of a message, at most {MAX_REPLY_TO} bytes")
        })?;
    }
    match &draft.content {
        Content::Text { body } => {
            require(!body.trim().is_empty(), "text", || "must not be empty".into())?;
            let length = body.chars().count();
            require(length <= MAX_TEXT, "text", || format!("has {length} characters, WhatsApp takes {MAX_TEXT}"))?;
            require(!body.contains('\0'), "text", || "contains a NUL character".into())?;
            match window {
                Window::None | Window::Open(_) => Ok(()),
                Window::Closed { last_inbound_at } => Err(Refused::WindowClosed { last_inbound_at }),
            }
        }
        Content::Template { name, language, params } => check_template(name, language, params),
        _ => Err(Refused::Invalid { path: "type", message: "WhatsApp does not take this kind of message".into() }),
    }
}

fn check_template(name: &str, language: &str, params: &[String]) -> Result<(), Refused> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    require((1..=MAX_TEMPLATE_NAME).contains(&name.len()) && name.bytes().all(plain), "templateName", || {
        format!("must be 1 to {MAX_TEMPLATE_NAME} of a-z, 0-9 and _")
    })?;
    require(is_language(language), "templateLanguage", || "must be a language code such as en or en_US".into())?;
    require(params.len() <= MAX_PARAMS, "templateParams", || format!("has more than {MAX_PARAMS} values"))?;
    for (position, param) in params.iter().enumerate() {
        let fits = !param.trim().is_empty() && param.chars().count() <= MAX_PARAM && !param.contains('\0');
        require(fits, "templateParams", || format!("value {} must have 1 to {MAX_PARAM} characters", position + 1))?;
    }
    Ok(())
}

/// `en`, `fil`, `en_US`, `zh_Hans`: a language, perhaps with a region or a script.
fn is_language(code: &str) -> bool {
    let (language, region) = code.split_once('_').map_or((code, None), |(language, region)| (language, Some(region)));
    (2..=3).contains(&language.len())
        && language.bytes().all(|b| b.is_ascii_lowercase())
        && region
            .is_none_or(|region| (2..=4).contains(&region.len()) && region.bytes().all(|b| b.is_ascii_alphanumeric()))
}

fn require(holds: bool, path: &'static str, message: impl FnOnce() -> String) -> Result<(), Refused> {
    if holds { Ok(()) } else { Err(Refused::Invalid { path, message: message() }) }
}

/// Body of `POST /{phone_number_id}/messages`. Members stand in the order of WhatsApp's own examples.
#[derive(Serialize)]
struct Body<'a> {
    messaging_product: &'static str,
    recipient_type: &'static str,
    #[serde(flatten)]
    address: Address<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<Context<'a>>,
    biz_opaque_callback_data: String,
    #[serde(flatten)]
    content: Sent<'a>,
}

/// Where it goes. A BSUID in `to` is answered 200 with an id and then never delivered, hence two members.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Address<'a> {
    To(&'a str),
    Recipient(&'a str),
}

#[derive(Serialize)]
struct Context<'a> {
    message_id: &'a str,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Sent<'a> {
    Text { text: Text<'a> },
    Template { template: Template<'a> },
}

#[derive(Serialize)]
struct Text<'a> {
    body: &'a str,
    preview_url: bool,
}

#[derive(Serialize)]
struct Template<'a> {
    name: &'a str,
    language: Language<'a>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    components: Vec<Component<'a>>,
}

#[derive(Serialize)]
struct Language<'a> {
    code: &'a str,
}

#[derive(Serialize)]
struct Component<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    parameters: Vec<Parameter<'a>>,
}

#[derive(Serialize)]
struct Parameter<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    text: &'a str,
}

/// The call that sends a message. WhatsApp has no idempotency key; our correlation comes back in every status instead.
pub(super) fn request(job: &SendJob, account: &Account) -> Result<Call, SendError> {
    let content = match &job.content {
        Content::Text { body } => Sent::Text { text: Text { body, preview_url: false } },
        Content::Template { name, language, params } => Sent::Template {
            template: Template { name, language: Language { code: language }, components: components(params) },
        },
        _ => return Err(rejected("unsupported", "WhatsApp does not take this kind of message")),
    };
    let body = Body {
        messaging_product: "whatsapp",
        recipient_type: "individual",
        address: address(&job.recipient)
            .ok_or_else(|| rejected("no_address", "no WhatsApp number or user id is known for this person"))?,
        context: job.reply_to.as_deref().map(|message_id| Context { message_id }),
        biz_opaque_callback_data: job.correlation.to_string(),
        content,
    };
    let body = serde_json::to_vec(&body).map_err(|error| rejected("unserializable", &error.to_string()))?;
    Ok(Call::Http(HttpCall {
        method: "POST",
        url: format!("{}/{}/messages", account.api_base, account.external_id),
        bearer: Some(account.access_token.clone()),
        body: Some(("application/json", body)),
    }))
}

/// The number when one is known, else the business-scoped id; each by its form, never by the member that holds it.
fn address(recipient: &Recipient) -> Option<Address<'_>> {
    let known = [&recipient.wa_id, &recipient.wa_bsuid, &recipient.other].map(|address| address.as_deref());
    let number = known.into_iter().flatten().find(|address| Identity::wa_id(address).is_some());
    let user = known.into_iter().flatten().find(|address| Identity::wa_bsuid(address).is_some());
    number.map(Address::To).or(user.map(Address::Recipient))
}

fn components(params: &[String]) -> Vec<Component<'_>> {
    if params.is_empty() {
        return Vec::new();
    }
    let parameters = params.iter().map(|text| Parameter { kind: "text", text }).collect();
    vec![Component { kind: "body", parameters }]
}

fn rejected(code: &str, reason: &str) -> SendError {
    SendError::Rejected { code: code.into(), reason: reason.into() }
}
