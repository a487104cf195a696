//! Protobuf request bodies. From 1.32 on kubectl sends them for every typed call (`create configmap`, `auth
//! whoami`, `drain --disable-eviction`) and does not fall back to JSON, so they must be read; answers are
//! always JSON, which clients accept.
//!
//! The messages are read by table ([`messages`]) straight into JSON, which then takes the same way as a JSON
//! body. Go's encoder writes the zero value of every plain field, so an empty text means "not set" here.
//! Fields that the tables do not know refuse the request: dropping one could drop a restriction.

mod messages;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde_json::{Map, Value};

/// What every protobuf body of Kubernetes starts with.
const MAGIC: &[u8] = b"k8s\0";

/// Deepest nesting of messages; Kubernetes' own kinds need about 12.
const MAX_DEPTH: usize = 32;

/// Why bytes are not one of the messages that are read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtobufError {
    /// The magic bytes are missing.
    #[error("protobuf body does not start with the Kubernetes magic bytes")]
    Magic,
    /// A length or number runs past the end, or a tag is malformed.
    #[error("protobuf message {message} is truncated or malformed")]
    Malformed {
        /// Message that was read.
        message: &'static str,
    },
    /// Messages nest deeper than any real object.
    #[error("protobuf message {message} is nested too deeply")]
    Depth {
        /// Message that was read.
        message: &'static str,
    },
    /// A field that the table of the message does not have.
    #[error("protobuf field {number} of {message} is not known to this server; send JSON to learn its name")]
    UnknownField {
        /// Message that was read.
        message: &'static str,
        /// Number of the field.
        number: u64,
    },
    /// A value that has the wrong form: not UTF-8, no time, no JSON.
    #[error("protobuf field {field} of {message} has a malformed value")]
    Value {
        /// Message that was read.
        message: &'static str,
        /// JSON name of the field.
        field: &'static str,
    },
    /// The envelope says that its content is compressed or otherwise encoded.
    #[error("protobuf content encoding {0:?} is not supported")]
    Encoding(String),
    /// A kind of which the protobuf form is not read.
    #[error("the protobuf form of {api_version} {kind} is not supported; send JSON")]
    Kind {
        /// `apiVersion` of the envelope.
        api_version: String,
        /// `kind` of the envelope.
        kind: String,
    },
}

/// Reads a body: magic, envelope, message. The result has `apiVersion` and `kind`.
pub fn decode(body: &[u8]) -> Result<Value, ProtobufError> {
    let envelope = Envelope::read(body.strip_prefix(MAGIC).ok_or(ProtobufError::Magic)?)?;
    let Envelope {
        api_version, kind, ..
    } = &envelope;
    let message = messages::by_kind(api_version, kind).ok_or_else(|| ProtobufError::Kind {
        api_version: api_version.clone(),
        kind: kind.clone(),
    })?;
    let mut object = Map::new();
    object.insert("apiVersion".to_owned(), Value::from(envelope.api_version));
    object.insert("kind".to_owned(), Value::from(envelope.kind));
    message.read(
        Input {
            rest: envelope.raw,
            message: message.name,
        },
        &mut object,
        MAX_DEPTH,
    )?;
    Ok(Value::Object(object))
}

/// One message: its fields by number.
#[derive(Debug)]
struct Message {
    name: &'static str,
    fields: &'static [Field],
}

#[derive(Debug)]
struct Field {
    number: u64,
    name: &'static str,
    multiplicity: Multiplicity,
    shape: Shape,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Multiplicity {
    One,
    List,
    /// Keys are always text.
    Map,
}

#[derive(Debug, Clone, Copy)]
enum Shape {
    Text,
    /// Base64 in JSON.
    Bytes,
    Int,
    Bool,
    /// Seconds in JSON; an empty message is Go's zero time, which is absent.
    Time,
    /// The same with microseconds.
    MicroTime,
    Quantity,
    IntOrString,
    /// A message around bytes that are JSON.
    RawJson,
    /// A message around a list of texts, which is the list in JSON.
    Texts,
    Message(&'static Message),
}

/// `runtime.Unknown`.
struct Envelope<'a> {
    api_version: String,
    kind: String,
    raw: &'a [u8],
}

impl<'a> Envelope<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, ProtobufError> {
        let mut envelope = Self {
            api_version: String::new(),
            kind: String::new(),
            raw: &[],
        };
        let mut input = Input {
            rest: bytes,
            message: "Unknown",
        };
        while let Some((number, value)) = input.field()? {
            let bytes = value.bytes(input.message)?;
            match number {
                1 => {
                    let mut type_meta = Input {
                        rest: bytes,
                        message: "TypeMeta",
                    };
                    while let Some((number, value)) = type_meta.field()? {
                        let text = utf8(value.bytes("TypeMeta")?, "TypeMeta", "kind")?;
                        match number {
                            1 => envelope.api_version = text,
                            2 => envelope.kind = text,
                            _ => {
                                return Err(ProtobufError::UnknownField {
                                    message: "TypeMeta",
                                    number,
                                });
                            }
                        }
                    }
                }
                2 => envelope.raw = bytes,
                3 if bytes.is_empty() => {}
                3 => {
                    return Err(ProtobufError::Encoding(utf8(
                        bytes,
                        "Unknown",
                        "contentEncoding",
                    )?));
                }
                4 => {}
                _ => {
                    return Err(ProtobufError::UnknownField {
                        message: "Unknown",
                        number,
                    });
                }
            }
        }
        Ok(envelope)
    }
}

impl Message {
    fn read(
        &self,
        mut input: Input<'_>,
        object: &mut Map<String, Value>,
        depth: usize,
    ) -> Result<(), ProtobufError> {
        let depth = depth
            .checked_sub(1)
            .ok_or(ProtobufError::Depth { message: self.name })?;
        while let Some((number, wire)) = input.field()? {
            let field = self.fields.iter().find(|field| field.number == number);
            let field = field.ok_or(ProtobufError::UnknownField {
                message: self.name,
                number,
            })?;
            match field.multiplicity {
                Multiplicity::One => self.read_one(field, wire, object, depth)?,
                Multiplicity::List => self.read_list(field, wire, object, depth)?,
                Multiplicity::Map => self.read_map(field, wire, object, depth)?,
            }
        }
        Ok(())
    }

    fn read_one(
        &self,
        field: &Field,
        wire: Wire<'_>,
        object: &mut Map<String, Value>,
        depth: usize,
    ) -> Result<(), ProtobufError> {
        if let (Shape::Message(message), "inline") = (field.shape, field.name) {
            return message.read(
                Input {
                    rest: wire.bytes(self.name)?,
                    message: message.name,
                },
                object,
                depth,
            );
        }
        let value = self.read_value(field, wire, depth)?;
        let unset = match field.shape {
            Shape::Text | Shape::Quantity => value == "",
            Shape::Time | Shape::MicroTime => value.is_null(),
            _ => false,
        };
        if !unset {
            object.insert(field.name.to_owned(), value);
        }
        Ok(())
    }

    fn read_list(
        &self,
        field: &Field,
        wire: Wire<'_>,
        object: &mut Map<String, Value>,
        depth: usize,
    ) -> Result<(), ProtobufError> {
        let list = object
            .entry(field.name)
            .or_insert_with(|| Value::Array(Vec::new()));
        let Value::Array(list) = list else {
            return Err(ProtobufError::Malformed { message: self.name });
        };
        match (field.shape, wire) {
            (Shape::Int, Wire::Bytes(packed)) => {
                let mut input = Input {
                    rest: packed,
                    message: self.name,
                };
                while !input.rest.is_empty() {
                    list.push(Value::from(input.varint()?.cast_signed()));
                }
            }
            _ => list.push(self.read_value(field, wire, depth)?),
        }
        Ok(())
    }

    fn read_map(
        &self,
        field: &Field,
        wire: Wire<'_>,
        object: &mut Map<String, Value>,
        depth: usize,
    ) -> Result<(), ProtobufError> {
        let mut entry = Input {
            rest: wire.bytes(self.name)?,
            message: self.name,
        };
        let (mut key, mut value) = (String::new(), None);
        while let Some((number, wire)) = entry.field()? {
            match number {
                1 => key = utf8(wire.bytes(self.name)?, self.name, field.name)?,
                2 => value = Some(self.read_value(field, wire, depth)?),
                _ => {
                    return Err(ProtobufError::UnknownField {
                        message: self.name,
                        number,
                    });
                }
            }
        }
        let map = object
            .entry(field.name)
            .or_insert_with(|| Value::Object(Map::new()));
        let Value::Object(map) = map else {
            return Err(ProtobufError::Malformed { message: self.name });
        };
        // A missing value is the zero value; every map that is read has text-like values.
        map.insert(key, value.unwrap_or_else(|| Value::from("")));
        Ok(())
    }

    fn read_value(&self, field: &Field, wire: Wire<'_>, depth: usize) -> Result<Value, ProtobufError> {
        let malformed = || ProtobufError::Value {
            message: self.name,
            field: field.name,
        };
        let sub = |bytes| Input {
            rest: bytes,
            message: self.name,
        };
        Ok(match field.shape {
            Shape::Int => Value::from(wire.varint(self.name)?.cast_signed()),
            Shape::Bool => Value::from(wire.varint(self.name)? != 0),
            Shape::Text => Value::from(utf8(wire.bytes(self.name)?, self.name, field.name)?),
            Shape::Bytes => Value::from(STANDARD.encode(wire.bytes(self.name)?)),
            Shape::Time => time(sub(wire.bytes(self.name)?), "%Y-%m-%dT%H:%M:%SZ", malformed)?,
            Shape::MicroTime => time(sub(wire.bytes(self.name)?), "%Y-%m-%dT%H:%M:%S%.6fZ", malformed)?,
            Shape::Quantity => {
                let mut input = sub(wire.bytes(self.name)?);
                let mut text = String::new();
                while let Some((_, value)) = input.field()? {
                    text = utf8(value.bytes(self.name)?, self.name, field.name)?;
                }
                Value::from(text)
            }
            Shape::IntOrString => int_or_string(sub(wire.bytes(self.name)?), field.name)?,
            Shape::RawJson => {
                let mut input = sub(wire.bytes(self.name)?);
                let mut value = Value::Null;
                while let Some((_, raw)) = input.field()? {
                    value = serde_json::from_slice(raw.bytes(self.name)?)
                        .ok()
                        .ok_or_else(malformed)?;
                }
                value
            }
            Shape::Texts => {
                let mut input = sub(wire.bytes(self.name)?);
                let mut texts = Vec::new();
                while let Some((_, value)) = input.field()? {
                    texts.push(Value::from(utf8(value.bytes(self.name)?, self.name, field.name)?));
                }
                Value::Array(texts)
            }
            Shape::Message(message) => {
                let mut object = Map::new();
                message.read(
                    Input {
                        rest: wire.bytes(self.name)?,
                        message: message.name,
                    },
                    &mut object,
                    depth,
                )?;
                Value::Object(object)
            }
        })
    }
}

/// `{seconds, nanos}`; null for the empty message.
fn time(
    mut input: Input<'_>,
    format: &str,
    malformed: impl Fn() -> ProtobufError,
) -> Result<Value, ProtobufError> {
    let (mut seconds, mut nanos) = (None, 0);
    while let Some((number, value)) = input.field()? {
        let value = value.varint(input.message)?.cast_signed();
        match number {
            1 => seconds = Some(value),
            2 => nanos = i32::try_from(value).ok().ok_or_else(&malformed)?,
            _ => {
                return Err(ProtobufError::UnknownField {
                    message: input.message,
                    number,
                });
            }
        }
    }
    let Some(seconds) = seconds else {
        return Ok(Value::Null);
    };
    let time = Timestamp::new(seconds, nanos).ok().ok_or_else(&malformed)?;
    Ok(Value::from(time.strftime(format).to_string()))
}

/// `{type, intVal, strVal}`: the type decides which of the two counts.
fn int_or_string(mut input: Input<'_>, field: &'static str) -> Result<Value, ProtobufError> {
    let (mut is_text, mut number_value, mut text) = (false, 0, String::new());
    while let Some((number, value)) = input.field()? {
        match number {
            1 => is_text = value.varint(input.message)? != 0,
            2 => number_value = value.varint(input.message)?.cast_signed(),
            3 => text = utf8(value.bytes(input.message)?, input.message, field)?,
            _ => {
                return Err(ProtobufError::UnknownField {
                    message: input.message,
                    number,
                });
            }
        }
    }
    Ok(if is_text {
        Value::from(text)
    } else {
        Value::from(number_value)
    })
}

fn utf8(bytes: &[u8], message: &'static str, field: &'static str) -> Result<String, ProtobufError> {
    String::from_utf8(bytes.to_vec())
        .ok()
        .ok_or(ProtobufError::Value { message, field })
}

/// Cursor over the fields of one message.
struct Input<'a> {
    rest: &'a [u8],
    /// For errors.
    message: &'static str,
}

/// A field's value as it stands on the wire. Kubernetes has no fixed-width fields.
#[derive(Clone, Copy)]
enum Wire<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
}

impl<'a> Input<'a> {
    /// Next field: number and value.
    fn field(&mut self) -> Result<Option<(u64, Wire<'a>)>, ProtobufError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            2 => {
                let length = usize::try_from(self.varint()?)
                    .ok()
                    .filter(|length| *length <= self.rest.len());
                let (bytes, rest) = self.rest.split_at(length.ok_or_else(|| self.malformed())?);
                self.rest = rest;
                Wire::Bytes(bytes)
            }
            _ => return Err(self.malformed()),
        };
        Ok(Some((tag >> 3, value)))
    }

    fn varint(&mut self) -> Result<u64, ProtobufError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.rest.split_first().ok_or_else(|| self.malformed())?;
            self.rest = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.malformed())
    }

    fn malformed(&self) -> ProtobufError {
        ProtobufError::Malformed {
            message: self.message,
        }
    }
}

impl<'a> Wire<'a> {
    fn varint(self, message: &'static str) -> Result<u64, ProtobufError> {
        match self {
            Self::Varint(value) => Ok(value),
            Self::Bytes(_) => Err(ProtobufError::Malformed { message }),
        }
    }

    fn bytes(self, message: &'static str) -> Result<&'a [u8], ProtobufError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Varint(_) => Err(ProtobufError::Malformed { message }),
        }
    }
}

#[cfg(test)]
mod tests;
