//! A Llama as a Hugging Face folder, `config.json` and safetensors, to be written as GGUF:
//! <https://huggingface.co/docs/safetensors>. Tokenizers are not read here.

use std::ops::Range;
use std::path::{Path, PathBuf};

use penstock_kernels::{Format, Mapped};
use serde_json::Value;

use super::draft::Source;
use super::{Draft, Entry, Error};

/// An open folder.
pub struct Folder {
    config: Value,
    files: Vec<Mapped>,
    tensors: Vec<Found>,
    /// Divisors of the rotary frequencies as f32, where the config scales them by wavelength.
    divisors: Vec<u8>,
}

/// A tensor of one of the files.
struct Found {
    name: String,
    file: usize,
    format: Format,
    shape: Vec<u64>,
    bytes: Range<usize>,
}

impl Folder {
    /// Opens `config.json` and every `*.safetensors` file of a folder.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let read = |path: PathBuf| move |source| Error::Read { path, source };
        let config = path.join("config.json");
        let text = std::fs::read(&config).map_err(read(config))?;
        let config: Value = serde_json::from_slice(&text)
            .map_err(|error| Error::Corrupted(format!("config.json is no JSON: {error}")))?;
        let listed = std::fs::read_dir(path).map_err(read(path.to_owned()))?;
        let mut paths: Vec<PathBuf> = listed.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
        paths.sort();
        if paths.is_empty() {
            return Err(Error::Unsupported(format!("{} without a *.safetensors file", path.display())));
        }
        let mut folder = Self { config, files: Vec::new(), tensors: Vec::new(), divisors: Vec::new() };
        for path in paths {
            let map = Mapped::open(&path).map_err(read(path))?;
            folder.list(&map)?;
            folder.files.push(map);
        }
        folder.divisors = folder.divisors()?.iter().flat_map(|divisor| divisor.to_le_bytes()).collect();
        Ok(folder)
    }

    /// Adds the tensors of a file.
    fn list(&mut self, file: &[u8]) -> Result<(), Error> {
        let broken = |what: &str| Error::Corrupted(format!("a safetensors file: {what}"));
        let len = file.first_chunk().map(|bytes| u64::from_le_bytes(*bytes)).and_then(|len| usize::try_from(len).ok());
        let header = len.and_then(|len| file[8..].get(..len)).ok_or_else(|| broken("its header is cut"))?;
        let data = 8 + header.len();
        let header: Value = serde_json::from_slice(header).map_err(|error| broken(&error.to_string()))?;
        for (name, about) in header.as_object().ok_or_else(|| broken("its header is no object"))? {
            if name == "__metadata__" {
                continue;
            }
            let format = match about["dtype"].as_str() {
                Some("F32") => Format::F32,
                Some("F16") => Format::F16,
                Some("BF16") => Format::Bf16,
                other => {
                    let what = format!("tensor {name:?} of type {}; F32, F16 and BF16 are", other.unwrap_or("none"));
                    return Err(Error::Unsupported(what));
                }
            };
            let numbers = |value: &Value| value.as_array()?.iter().map(Value::as_u64).collect::<Option<Vec<u64>>>();
            let (shape, offsets) = (numbers(&about["shape"]), numbers(&about["data_offsets"]));
            let (Some(shape), Some(&[start, end])) = (shape, offsets.as_deref()) else {
                return Err(broken(&format!("tensor {name:?} without shape or place")));
            };
            let place = |offset: u64| usize::try_from(offset).ok().and_then(|offset| offset.checked_add(data));
            let bytes = place(start).zip(place(end)).map(|(start, end)| start..end);
            let elements = shape.iter().try_fold(1u64, |all, n| all.checked_mul(*n));
            let needed = elements.and_then(|all| usize::try_from(all).ok()?.checked_mul(format.block_bytes()));
            let fits = |bytes: &Range<usize>| {
                bytes.start <= bytes.end && bytes.end <= file.len() && Some(bytes.len()) == needed
            };
            let Some(bytes) = bytes.filter(fits).filter(|bytes| !bytes.is_empty() && !shape.is_empty()) else {
                return Err(broken(&format!("tensor {name:?} lies outside the file or has another size")));
            };
            self.tensors.push(Found { name: name.clone(), file: self.files.len(), format, shape, bytes });
        }
        Ok(())
    }

    /// Tokens that the model has, those that its tokenizer does not name included.
    pub fn vocab_size(&self) -> Result<usize, Error> {
        Keys(&self.config).size("vocab_size")
    }

    /// The folder's config and weights; what texts need is left to the caller to add.
    pub fn draft(&self) -> Result<Draft<'_>, Error> {
        let keys = Keys(&self.config);
        let (kv_heads, head) = (keys.kv_heads()?, keys.head()?);
        let mut tensors = Vec::with_capacity(self.tensors.len() + 1);
        for found in &self.tensors {
            let Some(name) = gguf_name(&found.name) else {
                if found.name.ends_with("rotary_emb.inv_freq") {
                    continue;
                }
                return Err(Error::UnexpectedTensor(found.name.clone()));
            };
            if name == "output.weight" && keys.0["tie_word_embeddings"] == Value::Bool(true) {
                continue;
            }
            let paired = name.ends_with("attn_q.weight") || name.ends_with("attn_k.weight");
            if paired && found.shape.first().is_none_or(|rows| !rows.is_multiple_of(head as u64)) {
                return Err(Error::Corrupted(format!("tensor {:?} has no whole heads of {head}", found.name)));
            }
            tensors.push(Source {
                name,
                dimensions: found.shape.iter().rev().copied().collect(),
                format: found.format,
                bytes: &self.files[found.file][found.bytes.clone()],
                paired: paired.then_some(head),
            });
        }
        if !self.divisors.is_empty() {
            let dimensions = vec![self.divisors.len() as u64 / 4];
            let name = "rope_freqs.weight".to_owned();
            tensors.push(Source { name, dimensions, format: Format::F32, bytes: &self.divisors, paired: None });
        }
        let mut draft = Draft::new(tensors);
        draft.set("general.architecture", &Entry::Text("llama".to_owned()));
        let sizes = [
            ("llama.block_count", keys.size("num_hidden_layers")?),
            ("llama.context_length", keys.size("max_position_embeddings")?),
            ("llama.embedding_length", keys.size("hidden_size")?),
            ("llama.feed_forward_length", keys.size("intermediate_size")?),
            ("llama.attention.head_count", keys.size("num_attention_heads")?),
            ("llama.attention.head_count_kv", kv_heads),
            ("llama.attention.key_length", head),
            ("llama.attention.value_length", head),
            ("llama.rope.dimension_count", head),
            ("llama.vocab_size", keys.size("vocab_size")?),
        ];
        for (key, size) in sizes {
            draft.set(key, &Entry::U32(u32::try_from(size).map_err(|_| keys.wrong(key))?));
        }
        if let Some(window) = self.config["sliding_window"].as_u64() {
            let window = u32::try_from(window).map_err(|_| keys.wrong("sliding_window"))?;
            draft.set("llama.attention.sliding_window", &Entry::U32(window));
        }
        let rope = keys.rope();
        let base = rope["rope_theta"].as_f64().or_else(|| self.config["rope_theta"].as_f64()).unwrap_or(10_000.0);
        draft.set("llama.rope.freq_base", &Entry::F32(base as f32));
        if keys.rope_type() == "linear" {
            draft.set("llama.rope.scaling.type", &Entry::Text("linear".to_owned()));
            let factor = rope["factor"].as_f64().ok_or_else(|| keys.wrong("rope_scaling.factor"))?;
            draft.set("llama.rope.scaling.factor", &Entry::F32(factor as f32));
        }
        let epsilon = self.config["rms_norm_eps"].as_f64().ok_or_else(|| keys.wrong("rms_norm_eps"))?;
        draft.set("llama.attention.layer_norm_rms_epsilon", &Entry::F32(epsilon as f32));
        Ok(draft)
    }

    /// Refuses what is no Llama, and says by what the rotary frequencies are divided, as Llama 3.1 scales them: long
    /// waves by the factor, short ones not, those between in part.
    fn divisors(&self) -> Result<Vec<f32>, Error> {
        let keys = Keys(&self.config);
        keys.check()?;
        let rope = keys.rope();
        if keys.rope_type() != "llama3" {
            return Ok(Vec::new());
        }
        let number = |key: &str| rope[key].as_f64().ok_or_else(|| keys.wrong(&format!("rope_scaling.{key}")));
        let (factor, low, high) = (number("factor")?, number("low_freq_factor")?, number("high_freq_factor")?);
        let (context, size) = (number("original_max_position_embeddings")?, keys.head()?);
        let base = rope["rope_theta"].as_f64().or_else(|| self.config["rope_theta"].as_f64()).unwrap_or(10_000.0);
        let divisor = |i: usize| {
            let wave = 2.0 * std::f64::consts::PI * base.powf(2.0 * i as f64 / size as f64);
            let smooth = ((context / wave - low) / (high - low)).clamp(0.0, 1.0);
            (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
        };
        Ok((0..size / 2).map(divisor).collect())
    }
}

/// A `config.json`.
struct Keys<'a>(&'a Value);

impl Keys<'_> {
    fn wrong(&self, key: &str) -> Error {
        Error::Key { key: key.to_owned(), expected: "what a Llama's config.json has there" }
    }

    fn size(&self, key: &str) -> Result<usize, Error> {
        let size = self.0[key].as_u64().filter(|size| *size > 0).and_then(|size| usize::try_from(size).ok());
        size.ok_or_else(|| self.wrong(key))
    }

    fn kv_heads(&self) -> Result<usize, Error> {
        let key = "num_key_value_heads";
        if self.0[key].is_null() { self.size("num_attention_heads") } else { self.size(key) }
    }

    fn head(&self) -> Result<usize, Error> {
        let key = "head_dim";
        let head = if self.0[key].is_null() {
            self.size("hidden_size")? / self.size("num_attention_heads")?
        } else {
            self.size(key)?
        };
        if head == 0 || !head.is_multiple_of(2) { Err(self.wrong(key)) } else { Ok(head) }
    }

    /// Where the rotary settings stand: newer configs have `rope_parameters`, older ones `rope_scaling`.
    fn rope(&self) -> &Value {
        let newer = &self.0["rope_parameters"];
        if newer.is_null() { &self.0["rope_scaling"] } else { newer }
    }

    fn rope_type(&self) -> &str {
        let rope = self.rope();
        rope["rope_type"].as_str().or_else(|| rope["type"].as_str()).unwrap_or("default")
    }

    fn check(&self) -> Result<(), Error> {
        let kind = self.0["model_type"].as_str().unwrap_or("none");
        if !matches!(kind, "llama" | "mistral") {
            return Err(Error::Unsupported(format!("a config of model_type {kind:?}; llama and mistral are")));
        }
        if self.0["hidden_act"].as_str().is_some_and(|act| act != "silu") {
            return Err(Error::Unsupported(format!("the activation {}; silu is", self.0["hidden_act"])));
        }
        if let Some(bias) = ["attention_bias", "mlp_bias"].into_iter().find(|key| self.0[key] == Value::Bool(true)) {
            return Err(Error::Unsupported(format!("a Llama with {bias}")));
        }
        match self.rope_type() {
            "default" | "linear" | "llama3" => Ok(()),
            other => Err(Error::Unsupported(format!("rotary scaling of type {other:?}; linear and llama3 are"))),
        }
    }
}

/// What GGUF calls a tensor of a Llama.
fn gguf_name(name: &str) -> Option<String> {
    let whole = match name {
        "model.embed_tokens.weight" => Some("token_embd.weight"),
        "model.norm.weight" => Some("output_norm.weight"),
        "lm_head.weight" => Some("output.weight"),
        _ => None,
    };
    if let Some(whole) = whole {
        return Some(whole.to_owned());
    }
    let (layer, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let part = match part.strip_suffix(".weight")? {
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" => "ffn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        _ => return None,
    };
    Some(format!("blk.{}.{part}.weight", layer.parse::<u32>().ok()?))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const CONFIG: &str = r#"{"model_type":"llama","hidden_size":32,"intermediate_size":32,"num_hidden_layers":1,"vocab_size":2,
        "num_attention_heads":2,"max_position_embeddings":64,"rms_norm_eps":1e-5}"#;

    /// A folder that goes away with its owner.
    struct Temp(PathBuf);

    impl Temp {
        fn new(config: &str, tensors: &[u8]) -> Self {
            static COUNT: AtomicUsize = AtomicUsize::new(0);
            let name = format!("penstock-folder-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
            let path = std::env::temp_dir().join(name);
            std::fs::create_dir(&path).unwrap();
            std::fs::write(path.join("config.json"), config).unwrap();
            std::fs::write(path.join("model.safetensors"), tensors).unwrap();
            Self(path)
        }
    }

    impl Drop for Temp {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn file(header: &str, data: usize) -> Vec<u8> {
        let len = (header.len() as u64).to_le_bytes();
        [&len[..], header.as_bytes(), &vec![0; data]].concat()
    }

    fn refused(config: &str, tensors: &[u8]) -> String {
        let temp = Temp::new(config, tensors);
        let found = Folder::open(&temp.0).and_then(|folder| folder.draft().map(|_| ()));
        found.expect_err("it is refused").to_string()
    }

    #[test]
    fn a_damaged_file_is_an_error() {
        let header = r#"{"__metadata__":{"format":"pt"},"model.norm.weight":{"dtype":"BF16","shape":[32],"data_offsets":[0,64]}}"#;
        let whole = file(header, 64);
        let temp = Temp::new(CONFIG, &whole);
        assert!(Folder::open(&temp.0).unwrap().draft().is_ok());
        for len in 1..whole.len() {
            refused(CONFIG, &whole[..len]);
        }
        let wrong = [
            (r#"{"x":{"dtype":"BF16","shape":[32],"data_offsets":[0,62]}}"#, "another size"),
            (r#"{"x":{"dtype":"BF16","shape":[32],"data_offsets":[64,0]}}"#, "outside the file"),
            (r#"{"x":{"dtype":"BF16","shape":[32],"data_offsets":[18446744073709551615,1]}}"#, "outside the file"),
            (r#"{"x":{"dtype":"BF16","shape":[4294967296,4294967296],"data_offsets":[0,64]}}"#, "another size"),
            (r#"{"x":{"dtype":"BF16","shape":[],"data_offsets":[0,2]}}"#, "another size"),
            (r#"{"x":{"dtype":"I8","shape":[64],"data_offsets":[0,64]}}"#, "F32, F16 and BF16"),
            (r#"{"x":{"dtype":"BF16","data_offsets":[0,64]}}"#, "without shape"),
            (r#"{"x":{"dtype":"BF16","shape":[32],"data_offsets":[0,64]}}"#, "does not use: \"x\""),
            ("[]", "no object"),
        ];
        for (header, expected) in wrong {
            let error = refused(CONFIG, &file(header, 64));
            assert!(error.contains(expected), "{header}: {error}");
        }
    }

    #[test]
    fn what_is_no_llama_is_refused() {
        let tensors = file(r#"{"model.norm.weight":{"dtype":"BF16","shape":[32],"data_offsets":[0,64]}}"#, 64);
        let wrong = [
            (r#""model_type":"llama""#, r#""model_type":"qwen2""#, "qwen2"),
            (r#""vocab_size":2"#, r#""vocab_size":0"#, "vocab_size"),
            (r#""vocab_size":2"#, r#""vocab_size":2,"hidden_act":"gelu""#, "gelu"),
            (r#""vocab_size":2"#, r#""vocab_size":2,"attention_bias":true"#, "attention_bias"),
            (r#""vocab_size":2"#, r#""vocab_size":2,"rope_scaling":{"type":"yarn"}"#, "yarn"),
            (r#""vocab_size":2"#, r#""vocab_size":2,"rope_parameters":{"rope_type":"llama3"}"#, "rope_scaling.factor"),
            (r#""num_attention_heads":2"#, r#""num_attention_heads":64"#, "head_dim"),
            (r#""rms_norm_eps":1e-5"#, r#""rms_norm_eps":null"#, "rms_norm_eps"),
            ("{", "", "no JSON"),
        ];
        for (from, to, expected) in wrong {
            let error = refused(&CONFIG.replacen(from, to, 1), &tensors);
            assert!(error.contains(expected), "{to}: {error}");
        }
    }
}
