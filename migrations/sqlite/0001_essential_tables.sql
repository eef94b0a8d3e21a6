-- Roost's essential tables, SQLite side: the PostgreSQL file translated (times are microseconds since the epoch in INTEGER,
-- booleans INTEGER, JSON is checked TEXT). `change_feed.tx` is 0 here and `id` is the order: one writer.
CREATE TABLE deployment (                              -- one row, written by the first migration
  id text PRIMARY KEY CONSTRAINT deployment_id_ck CHECK (length(id) = 10), created_at INTEGER NOT NULL);   -- 10 random characters: part of every correlation

-- people and accounts: mirrors of the config plus run-time state; no secrets
CREATE TABLE users (
  id INTEGER PRIMARY KEY AUTOINCREMENT, email text NOT NULL CONSTRAINT users_email_uq UNIQUE, name text NOT NULL,
  role text NOT NULL CONSTRAINT users_role_ck CHECK (role IN ('viewer','agent','operator','admin')),
  ui_prefs TEXT NOT NULL DEFAULT '{}' CHECK (ui_prefs IS NULL OR json_valid(ui_prefs)), disabled_at INTEGER, created_at INTEGER NOT NULL);
CREATE TABLE api_tokens (
  id INTEGER PRIMARY KEY AUTOINCREMENT, name text NOT NULL CONSTRAINT api_tokens_name_uq UNIQUE, scopes TEXT NOT NULL DEFAULT '[]' CHECK (scopes IS NULL OR json_valid(scopes)),
  last_used_at INTEGER, disabled_at INTEGER);
CREATE TABLE sessions (
  token_sha256 BLOB PRIMARY KEY, user_id INTEGER NOT NULL REFERENCES users, created_at INTEGER NOT NULL, expires_at INTEGER NOT NULL, revoked_at INTEGER);

CREATE TABLE channel_accounts (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  channel text NOT NULL CONSTRAINT accounts_channel_ck CHECK (channel IN ('WHATSAPP','EMAIL','INSTAGRAM','FACEBOOK','WEBCHAT')),
  external_account_id text NOT NULL,                   -- phone_number_id | page_id | IG business id | mailbox | widget name
  name text NOT NULL,                                  -- the config's name; its queue is roost.outbound.<name>
  source text NOT NULL,                                -- the config source that signs for it: an item from another source never reaches it
  parent_external_id text,                             -- waba_id | page behind an IG account
  portfolio_id text,                                   -- Meta business portfolio: scope of WA_BSUID
  display_address text,                                -- +9714… | page name | support@…
  window_hours INTEGER,                               -- 24 for Meta channels; NULL = the channel has no window (EMAIL, WEBCHAT)
  rate_per_sec REAL NOT NULL, pair_interval_ms INTEGER NOT NULL DEFAULT 0,         -- as configured; what was learnt is in rate_limits
  status text NOT NULL DEFAULT 'ACTIVE' CONSTRAINT accounts_status_ck CHECK (status IN ('ACTIVE','PAUSED','BROKEN','DISABLED')),
  status_reason text, paused_until INTEGER, paused_by INTEGER,
  broken_token_sha256 text,                            -- every token that was refused, with spaces between; a sender with another one may set ACTIVE
  last_webhook_at INTEGER, last_send_ok_at INTEGER, last_error TEXT CHECK (last_error IS NULL OR json_valid(last_error)), created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL,
  CONSTRAINT accounts_external_uq UNIQUE (channel, external_account_id));
CREATE TABLE rate_limits (                             -- scope: account:<id> | app:<source> | waba:<id>; a pair's state is conversations.pair_tat
  scope text PRIMARY KEY, tat INTEGER NOT NULL, rate_per_sec REAL NOT NULL CONSTRAINT rate_ck CHECK (rate_per_sec > 0), blocked_until INTEGER);

CREATE TABLE contacts (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  full_name text,                                      -- NULL: the page shows the best identity; placeholders are never stored
  phone text, phone_e164 text, email text,             -- CRM phone / phoneNormalized / email: best known, for display and search; keys live in identities
  provided_phone text, provided_phone_e164 text, provided_email text,   -- typed by the customer, unverified
  nationality text, company_name text, local_sponsor_name text, source text, language text, time_zone text,
  attributes TEXT NOT NULL DEFAULT '{}' CHECK (attributes IS NULL OR json_valid(attributes)), merged_into_id INTEGER REFERENCES contacts,
  deleted_at INTEGER, created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL,
  CONSTRAINT contacts_phone_ck CHECK (phone_e164 IS NULL OR (substr(phone_e164, 1, 1) = '+' AND substr(phone_e164, 2, 1) <> '0'
      AND ltrim(substr(phone_e164, 2), '0123456789') = '' AND length(phone_e164) BETWEEN 8 AND 16)));
CREATE INDEX contacts_phone_ix ON contacts (phone_e164);
CREATE INDEX contacts_email_ix ON contacts (lower(email));

CREATE TABLE contact_identities (
  id INTEGER PRIMARY KEY AUTOINCREMENT, contact_id INTEGER NOT NULL REFERENCES contacts,
  kind text NOT NULL CONSTRAINT identities_kind_ck CHECK (kind IN ('PHONE','WA_ID','WA_BSUID','PSID','IGSID','EMAIL','VISITOR','EXTERNAL')),
  scope_key text NOT NULL DEFAULT '',                  -- '' global (PHONE, WA_ID, EMAIL); page id (PSID, IGSID); portfolio (WA_BSUID); site (VISITOR)
  value text NOT NULL, value_raw text, username text, display_name text,
  alias_of_id INTEGER REFERENCES contact_identities,   -- same address under another name (WA_BSUID seen beside WA_ID): conversations key on the canonical one
  verified INTEGER NOT NULL DEFAULT 0, opted_out_at INTEGER, opt_out_reason text, first_seen_at INTEGER NOT NULL,
  CONSTRAINT identities_uq UNIQUE (kind, scope_key, value),
  CONSTRAINT identities_value_ck CHECK (CASE kind
      WHEN 'PHONE' THEN substr(value, 1, 1) = '+' AND substr(value, 2, 1) <> '0' AND ltrim(substr(value, 2), '0123456789') = '' AND length(value) BETWEEN 8 AND 16
      WHEN 'WA_ID' THEN ltrim(value, '0123456789') = '' AND length(value) BETWEEN 6 AND 15
      WHEN 'EMAIL' THEN value = lower(value) AND value LIKE '%_@_%' ELSE length(value) > 0 END),
  CONSTRAINT identities_scope_ck CHECK (kind NOT IN ('PSID','IGSID','WA_BSUID','VISITOR') OR scope_key <> ''));
CREATE INDEX identities_contact_ix ON contact_identities (contact_id);

CREATE TABLE leads (
  id INTEGER PRIMARY KEY AUTOINCREMENT, contact_id INTEGER NOT NULL REFERENCES contacts,
  stage text NOT NULL DEFAULT 'NEW' CONSTRAINT leads_stage_ck CHECK (stage IN
    ('NEW','CONTACTED','ENGAGED','QUALIFIED','PROPOSAL_SENT','IN_PROGRESS','COMPLETED_WON','LOST','ON_HOLD')),
  priority text NOT NULL DEFAULT 'NORMAL' CONSTRAINT leads_priority_ck CHECK (priority IN ('LOW','NORMAL','HIGH','URGENT')),
  service_type text, requested_service_raw text, source text, external_ref text UNIQUE,      -- serviceTypeEnum, requestedServiceRaw, source, metaLeadgenId
  assigned_user_id INTEGER REFERENCES users, notes text, ai_score INTEGER CONSTRAINT leads_score_ck CHECK (ai_score BETWEEN 0 AND 100), ai_notes text,
  last_contact_at INTEGER, last_contact_channel text, last_inbound_at INTEGER, last_outbound_at INTEGER, next_follow_up_at INTEGER,
  expiry_date INTEGER, autopilot_enabled INTEGER NOT NULL DEFAULT 1, auto_reply_mode text, muted_until INTEGER,
  lead_type text, status text NOT NULL DEFAULT 'new', pipeline_stage text NOT NULL DEFAULT 'new',   -- legacy, mirrored from stage
  data TEXT NOT NULL DEFAULT '{}' CHECK (data IS NULL OR json_valid(data)), closed_at INTEGER, created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL);
CREATE INDEX leads_contact_ix ON leads (contact_id, created_at DESC);
CREATE INDEX leads_owner_ix ON leads (assigned_user_id, stage, next_follow_up_at);

CREATE TABLE conversations (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  contact_id INTEGER NOT NULL REFERENCES contacts, contact_identity_id INTEGER REFERENCES contact_identities,
  lead_id INTEGER REFERENCES leads, channel_account_id INTEGER REFERENCES channel_accounts,
  channel text NOT NULL CONSTRAINT conv_channel_ck CHECK (channel IN ('WHATSAPP','EMAIL','INSTAGRAM','FACEBOOK','WEBCHAT','INTERNAL_NOTE')),
  thread_key text NOT NULL DEFAULT '',                 -- '' = one thread per identity; e-mail: root Message-ID
  external_id text, external_thread_id text, wa_conversation_id text, wa_user_wa_id text,     -- CRM new + legacy, all kept
  status text NOT NULL DEFAULT 'OPEN' CONSTRAINT conv_status_ck CHECK (status IN ('OPEN','WAITING','SNOOZED','CLOSED')),
  handler text NOT NULL DEFAULT 'NONE' CONSTRAINT conv_handler_ck CHECK (handler IN ('NONE','HUMAN','AI')),
  assigned_user_id INTEGER REFERENCES users, subject text, language text,
  unread_count INTEGER NOT NULL DEFAULT 0 CONSTRAINT conv_unread_ck CHECK (unread_count >= 0),
  last_message_id INTEGER, last_message_at INTEGER NOT NULL, last_message_preview text, last_message_direction text,
  last_inbound_at INTEGER, last_outbound_at INTEGER, first_response_at INTEGER, last_failed_at INTEGER,
  needs_reply_since INTEGER, sla_due_at INTEGER, sla_breach_at INTEGER, priority_score INTEGER NOT NULL DEFAULT 0,
  window_expires_at INTEGER, snoozed_until INTEGER, closed_at INTEGER,
  pair_tat INTEGER,                                -- pair limit: this recipient on this account
  delivered_until INTEGER, read_until INTEGER, -- highest watermark seen (Messenger, Instagram): applied to sends whose id we learn later
  state TEXT NOT NULL DEFAULT '{}' CHECK (state IS NULL OR json_valid(state)),                   -- the bot's ~15 columns (flowKey, knownFields, aiState, …)
  version INTEGER NOT NULL DEFAULT 0, deleted_at INTEGER, created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL,
  CONSTRAINT conv_key_uq UNIQUE (channel_account_id, contact_identity_id, thread_key));
CREATE INDEX conv_contact_ix ON conversations (contact_id, channel);
CREATE INDEX conv_list_ix ON conversations (status, last_message_at DESC, id DESC) WHERE deleted_at IS NULL;
CREATE INDEX conv_mine_ix ON conversations (assigned_user_id, status, last_message_at DESC, id DESC) WHERE deleted_at IS NULL;
CREATE INDEX conv_needs_ix ON conversations (needs_reply_since) WHERE needs_reply_since IS NOT NULL AND deleted_at IS NULL;

CREATE TABLE message_templates (
  id INTEGER PRIMARY KEY AUTOINCREMENT, channel_account_id INTEGER NOT NULL REFERENCES channel_accounts,
  provider_template_id text, name text NOT NULL, language text NOT NULL, category text,
  status text NOT NULL CONSTRAINT tpl_status_ck CHECK (status IN ('DRAFT','PENDING','APPROVED','REJECTED','PAUSED','DISABLED')),
  components TEXT NOT NULL CHECK (components IS NULL OR json_valid(components)), variables TEXT NOT NULL DEFAULT '[]' CHECK (variables IS NULL OR json_valid(variables)), rejected_reason text, quality text, synced_at INTEGER NOT NULL,
  CONSTRAINT tpl_uq UNIQUE (channel_account_id, name, language));

-- what arrived: one row per webhook request, kept 30 days
CREATE TABLE webhook_events (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  request_id text NOT NULL CONSTRAINT we_request_uq UNIQUE,      -- uuid v7 from ingress: a redelivered frame changes nothing, the index grows at its end
  source text NOT NULL, received_at INTEGER NOT NULL, headers TEXT NOT NULL DEFAULT '{}' CHECK (headers IS NULL OR json_valid(headers)),
  body BLOB, body_ref text,                           -- bytes as received, or the object store's key when over 1 MiB
  items INTEGER, outcome text NOT NULL CONSTRAINT we_outcome_ck CHECK (outcome IN ('PROCESSED','PARTIAL','IGNORED','DEAD')),
  CONSTRAINT we_body_ck CHECK ((body IS NULL) <> (body_ref IS NULL)));
CREATE INDEX we_recent_ix ON webhook_events (source, received_at DESC);
CREATE INDEX we_ref_ix ON webhook_events (body_ref) WHERE body_ref IS NOT NULL;   -- whether an object is still referred to

CREATE TABLE messages (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  conversation_id INTEGER NOT NULL REFERENCES conversations ON DELETE CASCADE,
  contact_id INTEGER, lead_id INTEGER, channel_account_id INTEGER,           -- plain columns: filled from the conversation
  direction text NOT NULL CONSTRAINT msg_dir_ck CHECK (direction IN ('INBOUND','OUTBOUND')),
  channel text NOT NULL CONSTRAINT msg_channel_ck CHECK (channel IN ('WHATSAPP','EMAIL','INSTAGRAM','FACEBOOK','WEBCHAT','INTERNAL_NOTE')),
  type text NOT NULL DEFAULT 'text' CONSTRAINT msg_type_ck CHECK (type IN ('text','image','audio','video','document','sticker','location','contacts',
    'template','interactive','button','order','system','note','reaction','unsupported')),
  subject text, body text, body_html text, search_text text,              -- search_text: folded by the app (case, Arabic tashkeel/alef, digits)
  template_id INTEGER, template_name text, template_language text, template_params TEXT CHECK (template_params IS NULL OR json_valid(template_params)),
  media_url text, media_mime_type text,                                   -- CRM fields; mirror of media position 0, provider URLs are never stored here
  status text NOT NULL CONSTRAINT msg_status_ck CHECK (status IN ('RECEIVED','QUEUED','SENDING','SENT','DELIVERED','READ','FAILED')),
  status_rank INTEGER GENERATED ALWAYS AS (CASE status WHEN 'RECEIVED' THEN 0 WHEN 'QUEUED' THEN 10 WHEN 'SENDING' THEN 20 WHEN 'SENT' THEN 30
    WHEN 'FAILED' THEN 35 WHEN 'DELIVERED' THEN 40 ELSE 50 END) STORED,
  error_class text, error_code text, error_message text,                  -- class CANCELLED, code UNDONE: hidden
  provider_message_id text,                                               -- inbound without one: x:<sha256 of account, kind, item bytes>
  client_message_id text, request_hash BLOB,                             -- the caller's key and what it asked for: same key, other hash = 422
  send_generation INTEGER NOT NULL DEFAULT 0, outcome_unknown INTEGER NOT NULL DEFAULT 0, confirmed_by_user_id INTEGER,
  origin text NOT NULL CONSTRAINT msg_origin_ck CHECK (origin IN ('CONTACT','AGENT','AI','AUTOMATION','API','ECHO')),
  created_by_user_id INTEGER, ai_draft_id INTEGER, reply_to_message_id INTEGER, reply_to_provider_id text, part_of_message_id INTEGER,
  payload TEXT CHECK (payload IS NULL OR json_valid(payload)), meta TEXT CHECK (meta IS NULL OR json_valid(meta)), raw_payload text, webhook_event_id INTEGER,   -- raw_payload: the item as it arrived, not parsed again
  occurred_at INTEGER NOT NULL, created_at INTEGER NOT NULL,
  queued_at INTEGER, sent_at INTEGER, delivered_at INTEGER, read_at INTEGER, failed_at INTEGER, edited_at INTEGER, revoked_at INTEGER,
  CONSTRAINT msg_provider_uq UNIQUE (provider_message_id, channel_account_id),        -- the deduplication; also serves Trace
  CONSTRAINT msg_dir_status_ck CHECK ((direction = 'INBOUND') = (status = 'RECEIVED')),
  CONSTRAINT msg_inbound_key_ck CHECK (direction = 'OUTBOUND' OR provider_message_id IS NOT NULL),
  CONSTRAINT msg_note_ck CHECK ((channel = 'INTERNAL_NOTE') = (type = 'note') AND (channel <> 'INTERNAL_NOTE' OR (channel_account_id IS NULL AND provider_message_id IS NULL AND direction = 'OUTBOUND'))),
  CONSTRAINT msg_account_ck CHECK (channel = 'INTERNAL_NOTE' OR channel_account_id IS NOT NULL),
  CONSTRAINT msg_proof_ck CHECK (status NOT IN ('SENT','DELIVERED','READ') OR provider_message_id IS NOT NULL OR confirmed_by_user_id IS NOT NULL OR channel = 'INTERNAL_NOTE'),
  CONSTRAINT msg_unknown_ck CHECK (NOT outcome_unknown OR status = 'SENDING'),
  CONSTRAINT msg_failed_ck CHECK (status <> 'FAILED' OR error_class IS NOT NULL));
CREATE UNIQUE INDEX msg_client_uq ON messages (conversation_id, client_message_id) WHERE client_message_id IS NOT NULL;
CREATE INDEX msg_thread_ix ON messages (conversation_id, occurred_at DESC, id DESC);
CREATE INDEX msg_contact_ix ON messages (contact_id, occurred_at DESC);

CREATE TABLE message_media (
  id INTEGER PRIMARY KEY AUTOINCREMENT, message_id INTEGER NOT NULL REFERENCES messages ON DELETE CASCADE, position INTEGER NOT NULL DEFAULT 0,
  kind text NOT NULL, provider_media_id text, mime_type text, filename text, size_bytes INTEGER, sha256 BLOB, caption text,
  width INTEGER, height INTEGER, duration_ms INTEGER, transcript text, storage_key text, thumb_key text,
  state text NOT NULL DEFAULT 'PENDING' CONSTRAINT media_state_ck CHECK (state IN ('PENDING','STORED','EXPIRED','FAILED','TOO_LARGE','BLOCKED')),
  attempts INTEGER NOT NULL DEFAULT 0, next_attempt_at INTEGER NOT NULL, error text, fetched_at INTEGER, created_at INTEGER NOT NULL,
  CONSTRAINT media_uq UNIQUE (message_id, position));
CREATE INDEX media_due_ix ON message_media (next_attempt_at) WHERE state = 'PENDING';

CREATE TABLE message_reactions (                       -- current reaction per author; the newest provider time wins, an empty one revokes
  id INTEGER PRIMARY KEY AUTOINCREMENT, conversation_id INTEGER NOT NULL REFERENCES conversations ON DELETE CASCADE,
  channel_account_id INTEGER NOT NULL, target_provider_id text NOT NULL, message_id INTEGER,   -- NULL while the target is unknown
  author text NOT NULL,                                -- i:<identity id> for a customer, us for the business
  user_id INTEGER, emoji text, occurred_at INTEGER NOT NULL, revoked_at INTEGER,
  CONSTRAINT reactions_uq UNIQUE (channel_account_id, target_provider_id, author));
CREATE INDEX reactions_message_ix ON message_reactions (message_id);

CREATE TABLE message_status_events (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  message_id INTEGER REFERENCES messages ON DELETE CASCADE, conversation_id INTEGER,           -- message_id NULL: parked, or a watermark
  waits_for_message_id INTEGER,                       -- parked, but the message is known: its call is still open, and its report takes this up
  channel_account_id INTEGER NOT NULL, provider_message_id text, generation INTEGER, correlation text,   -- a watermark's id is w:<user>
  status text CONSTRAINT mse_status_ck CHECK (status IN ('RECEIVED','QUEUED','SENDING','SENT','DELIVERED','READ','FAILED')),   -- NULL: provider value we do not map
  provider_status text, error_code text, error_message text, pricing TEXT CHECK (pricing IS NULL OR json_valid(pricing)),
  source text NOT NULL CONSTRAINT mse_source_ck CHECK (source IN ('PROVIDER','SENDER','OPERATOR')),
  applied INTEGER NOT NULL DEFAULT 0, raw_payload text, webhook_event_id INTEGER, occurred_at INTEGER NOT NULL, received_at INTEGER NOT NULL,
  CONSTRAINT mse_key_ck CHECK (source <> 'PROVIDER' OR (provider_message_id IS NOT NULL AND provider_status IS NOT NULL)));
CREATE UNIQUE INDEX mse_dedupe_uq ON message_status_events (channel_account_id, provider_message_id, provider_status, occurred_at) WHERE source = 'PROVIDER';
CREATE INDEX mse_message_ix ON message_status_events (message_id, received_at);
CREATE INDEX mse_parked_ix ON message_status_events (channel_account_id, provider_message_id) WHERE message_id IS NULL AND conversation_id IS NULL;
CREATE INDEX mse_waiting_ix ON message_status_events (waits_for_message_id) WHERE message_id IS NULL AND waits_for_message_id IS NOT NULL;

-- sending
CREATE TABLE sends (                                   -- a row exists exactly while its message is QUEUED or SENDING
  message_id INTEGER PRIMARY KEY REFERENCES messages ON DELETE CASCADE, conversation_id INTEGER NOT NULL, channel_account_id INTEGER NOT NULL,
  seq INTEGER,                                          -- place in the conversation's lane; NULL outside it
  generation INTEGER NOT NULL DEFAULT 0, attempt INTEGER NOT NULL DEFAULT 0, bulk INTEGER NOT NULL DEFAULT 0,
  state text NOT NULL CONSTRAINT sends_state_ck CHECK (state IN ('SCHEDULED','WAITING','DISPATCHED','IN_FLIGHT','UNKNOWN','HELD')),
  due_at INTEGER NOT NULL, deadline_at INTEGER NOT NULL, lease_token text, lease_until INTEGER,
  dispatched_at INTEGER, unknown_since INTEGER, witness_at INTEGER, traceparent text, created_at INTEGER NOT NULL,
  CONSTRAINT sends_seq_ck CHECK ((seq IS NULL) = (state IN ('SCHEDULED','HELD'))),
  CONSTRAINT sends_lease_ck CHECK ((state = 'IN_FLIGHT') = (lease_token IS NOT NULL) AND (lease_token IS NULL) = (lease_until IS NULL)),
  CONSTRAINT sends_unknown_ck CHECK (state <> 'UNKNOWN' OR unknown_since IS NOT NULL),
  CONSTRAINT sends_lane_uq UNIQUE (conversation_id, seq));
CREATE INDEX sends_due_ix ON sends (channel_account_id, bulk, due_at) WHERE state IN ('SCHEDULED','WAITING');
CREATE INDEX sends_dispatched_ix ON sends (channel_account_id, dispatched_at) WHERE state = 'DISPATCHED';
CREATE INDEX sends_lease_ix ON sends (lease_until) WHERE state = 'IN_FLIGHT';
CREATE INDEX sends_unknown_ix ON sends (channel_account_id) WHERE state = 'UNKNOWN';
CREATE INDEX sends_tried_ix ON sends (message_id) WHERE attempt > 0 AND state <> 'IN_FLIGHT';   -- what the keeper asks whether it is over

CREATE TABLE send_attempts (                           -- written by ingest from results; replaces OutboundMessageLog, OutboundMessageDedup, AiReplyDedup
  id INTEGER PRIMARY KEY AUTOINCREMENT, message_id INTEGER NOT NULL REFERENCES messages ON DELETE CASCADE,
  generation INTEGER NOT NULL, attempt INTEGER NOT NULL, worker text, provider_message_id text,
  outcome text NOT NULL CONSTRAINT sa_outcome_ck CHECK (outcome IN ('ACCEPTED','RETRY','THROTTLED','REJECTED','ACCOUNT_BROKEN','UNKNOWN')),
  http_status INTEGER, provider_code text, provider_subcode text, error_message text, retry_after_ms INTEGER,
  request_summary TEXT CHECK (request_summary IS NULL OR json_valid(request_summary)), response_summary TEXT CHECK (response_summary IS NULL OR json_valid(response_summary)), started_at INTEGER, finished_at INTEGER NOT NULL,
  CONSTRAINT sa_uq UNIQUE (message_id, generation, attempt));
CREATE INDEX sa_provider_ix ON send_attempts (provider_message_id) WHERE provider_message_id IS NOT NULL;

CREATE TABLE broadcasts (
  id INTEGER PRIMARY KEY AUTOINCREMENT, client_id text NOT NULL CONSTRAINT broadcasts_client_uq UNIQUE, request_hash BLOB NOT NULL, name text,
  channel_account_id INTEGER NOT NULL, template_name text NOT NULL, template_language text NOT NULL, rate_share REAL NOT NULL,
  state text NOT NULL CONSTRAINT broadcasts_state_ck CHECK (state IN ('RUNNING','PAUSED','DONE','CANCELLED')), state_reason text,
  created_by_user_id INTEGER, created_at INTEGER NOT NULL, finished_at INTEGER);
CREATE TABLE broadcast_recipients (
  broadcast_id INTEGER NOT NULL REFERENCES broadcasts ON DELETE CASCADE, position INTEGER NOT NULL, address text NOT NULL, params TEXT NOT NULL DEFAULT '[]' CHECK (params IS NULL OR json_valid(params)),
  message_id INTEGER, error text, PRIMARY KEY (broadcast_id, position), CONSTRAINT br_address_uq UNIQUE (broadcast_id, address));

CREATE TABLE dead_letters (
  id INTEGER PRIMARY KEY AUTOINCREMENT, origin_key text NOT NULL CONSTRAINT dl_origin_uq UNIQUE,   -- key of the original: dying again updates this row
  stage text NOT NULL CONSTRAINT dl_stage_ck CHECK (stage IN ('INGEST','RESULT','SEND','MEDIA','DRAFT','ERRAND')),
  queue text NOT NULL, headers TEXT NOT NULL DEFAULT '{}' CHECK (headers IS NULL OR json_valid(headers)), body BLOB NOT NULL, content_type text,
  error_class text NOT NULL, error_code text, error_message text, error_chain TEXT CHECK (error_chain IS NULL OR json_valid(error_chain)), fingerprint text NOT NULL,   -- hash(stage, class, code, message with ids/numbers folded)
  attempts INTEGER NOT NULL DEFAULT 1, replayable INTEGER NOT NULL DEFAULT 1, may_duplicate INTEGER NOT NULL DEFAULT 0,
  state text NOT NULL DEFAULT 'OPEN' CONSTRAINT dl_state_ck CHECK (state IN ('OPEN','REPLAYING','RESOLVED','DISCARDED')),
  replay_count INTEGER NOT NULL DEFAULT 0, last_replayed_at INTEGER, last_replayed_by INTEGER, discard_reason text,
  source text, request_id text, message_id INTEGER, conversation_id INTEGER, channel_account_id INTEGER,
  first_failed_at INTEGER NOT NULL, died_at INTEGER NOT NULL, closed_at INTEGER);
CREATE INDEX dl_open_ix ON dead_letters (state, died_at DESC);
CREATE INDEX dl_group_ix ON dead_letters (fingerprint, state);

CREATE TABLE ai_drafts (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  conversation_id INTEGER NOT NULL REFERENCES conversations ON DELETE CASCADE, lead_id INTEGER, contact_id INTEGER,
  objective text, tone text NOT NULL, language text NOT NULL DEFAULT 'en', prompt_version text NOT NULL DEFAULT 'v1',
  input_summary text, draft_text text NOT NULL DEFAULT '', next_questions TEXT NOT NULL DEFAULT '[]' CHECK (next_questions IS NULL OR json_valid(next_questions)),   -- draft_text grows while GENERATING, at most 4 times a second
  state text NOT NULL DEFAULT 'GENERATING' CONSTRAINT draft_state_ck CHECK (state IN ('GENERATING','READY','FAILED','USED','DISCARDED')),
  provider text, model text, tokens_in INTEGER, tokens_out INTEGER, latency_ms INTEGER, error text,
  based_on_message_id INTEGER, used_message_id INTEGER, edit_distance INTEGER,      -- a message newer than based_on: "outdated"
  created_by_user_id INTEGER, created_at INTEGER NOT NULL);
CREATE INDEX draft_conv_ix ON ai_drafts (conversation_id, created_at DESC);

CREATE TABLE change_feed (                             -- drives SSE (Last-Event-ID), JSON polling and outgoing webhooks; ids only, no text
  tx INTEGER NOT NULL DEFAULT 0, id INTEGER PRIMARY KEY AUTOINCREMENT,
  kind text NOT NULL, conversation_id INTEGER, contact_id INTEGER, entity_id INTEGER, status text, created_at INTEGER NOT NULL);

-- running it
CREATE TABLE process_heartbeats (
  role text NOT NULL, instance text NOT NULL, version text NOT NULL, started_at INTEGER NOT NULL, beat_at INTEGER NOT NULL,
  settled_until INTEGER,                           -- ingest: every frame it took that was received before this is committed
  stats TEXT NOT NULL DEFAULT '{}' CHECK (stats IS NULL OR json_valid(stats)), PRIMARY KEY (role, instance));
CREATE TABLE webhook_refusals (                        -- counts from ingress beats; never the refused bytes
  source text NOT NULL, reason text NOT NULL, minute INTEGER NOT NULL, instance text NOT NULL, refused INTEGER NOT NULL, PRIMARY KEY (source, reason, minute, instance));
CREATE TABLE keeper_leases (job text PRIMARY KEY, holder text NOT NULL, lease_until INTEGER NOT NULL);
CREATE TABLE audit_log (
  id INTEGER PRIMARY KEY AUTOINCREMENT, actor_user_id INTEGER, actor_token_id INTEGER, action text NOT NULL,
  target_type text NOT NULL, target_id text NOT NULL, detail TEXT NOT NULL DEFAULT '{}' CHECK (detail IS NULL OR json_valid(detail)), request_id text, ip text, created_at INTEGER NOT NULL);
CREATE INDEX audit_target_ix ON audit_log (target_type, target_id, created_at DESC);

-- Ten random characters, once: whose messages these are (every correlation carries them).
INSERT INTO deployment (id, created_at)
WITH RECURSIVE ten(n, c) AS (
  SELECT 1, substr('abcdefghijklmnopqrstuvwxyz0123456789', 1 + abs(random() % 36), 1)
  UNION ALL SELECT n + 1, substr('abcdefghijklmnopqrstuvwxyz0123456789', 1 + abs(random() % 36), 1) FROM ten WHERE n < 10)
SELECT group_concat(c, ''), unixepoch() * 1000000 FROM ten;
