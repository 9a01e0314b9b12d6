//! Fills what a request leaves open, once, from the model and its context, and checks what only the model can tell.

use penstock_proto::ErrorCode;

use crate::fleet::Model;
use crate::prompt::Defaults;
use crate::replica::{Card, Filled};
use crate::request::{Failure, Sampling};

/// The sampling of the calls for `choices` answers to one prompt.
pub(super) fn sampling(asked: Sampling, choices: u32, prompt: &[u32], model: &Model) -> Result<Filled, Failure> {
    let max_tokens = max_tokens(&asked, prompt.len(), &model.card)?;
    check(&asked, max_tokens, &model.card)?;
    fit(&asked, choices, prompt.len(), &model.card)?;
    Ok(fill(asked, max_tokens, model.text.defaults()))
}

fn fill(asked: Sampling, max_tokens: u32, defaults: &Defaults) -> Filled {
    Filled {
        seed: asked.seed.unwrap_or_else(|| fastrand::u64(..)),
        temperature: asked.temperature.or(defaults.temperature).unwrap_or(1.0),
        top_k: asked.top_k.or(defaults.top_k).unwrap_or(0),
        top_p: asked.top_p.or(defaults.top_p).unwrap_or(1.0),
        min_p: asked.min_p.or(defaults.min_p).unwrap_or(0.0),
        repetition_penalty: asked.repetition_penalty.or(defaults.repetition_penalty).unwrap_or(1.0),
        presence_penalty: asked.presence_penalty.unwrap_or(0.0),
        frequency_penalty: asked.frequency_penalty.unwrap_or(0.0),
        logit_bias: asked.logit_bias.into_iter().collect(),
        max_tokens,
        min_tokens: asked.min_tokens,
        ignore_eos: asked.ignore_eos,
        stop_token_ids: asked.stop_token_ids,
        top_logprobs: asked.top_logprobs,
    }
}

/// The client's, else the face's default, else what the prompt leaves of the context.
fn max_tokens(asked: &Sampling, prompt: usize, card: &Card) -> Result<u32, Failure> {
    let context = card.context_length;
    let room = u32::try_from(prompt).ok().and_then(|prompt| context.checked_sub(prompt)).filter(|room| *room > 0);
    let Some(room) = room else {
        let message = format!("the prompt has {prompt} tokens; prompt and answer together may have {context}");
        return Err(Failure::new(ErrorCode::ContextTooLong, message));
    };
    match asked.max_tokens {
        None => Ok(asked.default_max_tokens.unwrap_or(room).max(asked.min_tokens).min(room)),
        Some(wanted) if wanted <= room => Ok(wanted),
        Some(wanted) if wanted > context => {
            let message = format!("max_tokens is {wanted}; prompt and answer together may have {context} tokens");
            Err(Failure::field("max_tokens", message))
        }
        Some(wanted) => {
            let message = format!(
                "the prompt has {prompt} tokens and max_tokens is {wanted}, together {}; they may have {context}",
                prompt as u64 + u64::from(wanted)
            );
            Err(Failure { param: Some("max_tokens".to_owned()), ..Failure::new(ErrorCode::ContextTooLong, message) })
        }
    }
}

/// Choices that the client gave a length must be able to be in the pool together, behind one prompt.
fn fit(asked: &Sampling, choices: u32, prompt: usize, card: &Card) -> Result<(), Failure> {
    let Some(max_tokens) = asked.max_tokens.filter(|_| choices > 1 && card.kv_tokens > 0) else { return Ok(()) };
    let needed = prompt as u64 + u64::from(choices) * u64::from(max_tokens);
    if needed <= card.kv_tokens {
        return Ok(());
    }
    let message = format!(
        "n asks for {choices} choices of {max_tokens} tokens behind {prompt} of the prompt, {needed} in all; a worker \
         holds {} at once",
        card.kv_tokens
    );
    Err(Failure { param: Some("n".to_owned()), ..Failure::new(ErrorCode::ContextTooLong, message) })
}

fn check(asked: &Sampling, max_tokens: u32, card: &Card) -> Result<(), Failure> {
    let size = card.vocab_size;
    if let Some(id) = asked.logit_bias.keys().find(|id| **id >= size) {
        return Err(Failure::field("logit_bias", format!("logit_bias names token {id}; the model has {size} tokens")));
    }
    if let Some(id) = asked.stop_token_ids.iter().find(|id| **id >= size) {
        let message = format!("stop_token_ids names token {id}; the model has {size} tokens");
        return Err(Failure::field("stop_token_ids", message));
    }
    if asked.min_tokens > max_tokens {
        let message = format!("min_tokens is {}; the answer may have {max_tokens} tokens", asked.min_tokens);
        return Err(Failure::field("min_tokens", message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card() -> Card {
        Card { digest: "d".to_owned(), context_length: 100, vocab_size: 10, kv_tokens: 1000 }
    }

    fn asked(max_tokens: Option<u32>) -> Sampling {
        Sampling { max_tokens, ..Sampling::default() }
    }

    #[test]
    fn max_tokens_is_what_the_client_says_or_what_the_context_leaves() {
        assert_eq!(max_tokens(&asked(None), 30, &card()), Ok(70));
        assert_eq!(max_tokens(&asked(Some(70)), 30, &card()), Ok(70));
        let over = max_tokens(&asked(Some(71)), 30, &card()).unwrap_err();
        assert_eq!((over.code, over.param.as_deref()), (ErrorCode::ContextTooLong, Some("max_tokens")));
        assert!(over.message.contains("30") && over.message.contains("101") && over.message.contains("100"));
        let over = max_tokens(&asked(Some(101)), 30, &card()).unwrap_err();
        assert_eq!((over.code, over.param.as_deref()), (ErrorCode::InvalidRequest, Some("max_tokens")));
        let short = Sampling { default_max_tokens: Some(16), ..Sampling::default() };
        assert_eq!(max_tokens(&short, 30, &card()), Ok(16));
        assert_eq!(max_tokens(&short, 90, &card()), Ok(10));
        assert_eq!(max_tokens(&Sampling { min_tokens: 20, ..short.clone() }, 30, &card()), Ok(20));
        assert_eq!(max_tokens(&Sampling { max_tokens: Some(30), ..short }, 30, &card()), Ok(30));
        for prompt in [100, 101, usize::MAX] {
            let over = max_tokens(&asked(None), prompt, &card()).unwrap_err();
            assert_eq!(over.code, ErrorCode::ContextTooLong);
        }
    }

    #[test]
    fn defaults_come_from_the_client_then_the_model_then_openai() {
        let defaults = Defaults { temperature: Some(0.6), top_k: Some(20), ..Defaults::default() };
        let given = Sampling { temperature: Some(0.0), seed: Some(7), ..Sampling::default() };
        let filled = fill(given, 5, &defaults);
        assert_eq!((filled.temperature, filled.top_k, filled.top_p, filled.seed), (0.0, 20, 1.0, 7));
        assert_eq!(fill(Sampling::default(), 5, &defaults).temperature, 0.6);
        assert_eq!(fill(Sampling::default(), 5, &Defaults::default()).temperature, 1.0);
    }

    #[test]
    fn choices_that_could_never_be_in_the_pool_together_are_refused_by_name() {
        assert_eq!(fit(&asked(Some(90)), 11, 10, &card()), Ok(()));
        let over = fit(&asked(Some(90)), 12, 10, &card()).unwrap_err();
        assert_eq!((over.code, over.param.as_deref()), (ErrorCode::ContextTooLong, Some("n")));
        assert!(over.message.contains("1090") && over.message.contains("1000"), "{}", over.message);
        // Where the client names no length, the context is the only limit; where the worker names no pool, too.
        assert_eq!(fit(&asked(None), 12, 10, &card()), Ok(()));
        assert_eq!(fit(&asked(Some(90)), 12, 10, &Card { kv_tokens: 0, ..card() }), Ok(()));
    }

    #[test]
    fn ids_outside_the_vocabulary_are_refused_by_name() {
        let refused = |asked: Sampling| check(&asked, 5, &card()).unwrap_err().param.unwrap();
        assert_eq!(refused(Sampling { logit_bias: [(10, 1.0)].into(), ..Sampling::default() }), "logit_bias");
        assert_eq!(refused(Sampling { stop_token_ids: vec![10], ..Sampling::default() }), "stop_token_ids");
        assert_eq!(refused(Sampling { min_tokens: 6, ..Sampling::default() }), "min_tokens");
        assert_eq!(check(&Sampling { logit_bias: [(9, 1.0)].into(), ..Sampling::default() }, 5, &card()), Ok(()));
    }
}
