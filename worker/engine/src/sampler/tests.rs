use std::num::NonZeroUsize;
use std::sync::Mutex;

use penstock_kernels::{Cpu, Isa};
use proptest::prelude::*;

use super::*;

fn sample(params: SamplingParams, outputs: &[TokenId], logits: &[f32]) -> Result<TokenId, Unsampleable> {
    let mut sampler = Sampler::new(params, &[0], outputs, &[4]);
    sampler.sample(&mut logits.to_vec(), &mut Scratch::default()).map(|drawn| drawn.token)
}

fn greedy() -> SamplingParams {
    SamplingParams { temperature: 0.0, max_tokens: 8, ..SamplingParams::default() }
}

#[test]
fn the_lowest_id_wins_a_tie() {
    let logits = [0.0, 3.0, 1.0, 3.0, 3.0];
    assert_eq!(sample(greedy(), &[], &logits), Ok(1));
    let one = SamplingParams { top_k: 1, seed: 7, ..SamplingParams::default() };
    assert_eq!(sample(one, &[], &logits), Ok(1));
}

#[test]
fn penalties_come_before_the_bias() {
    let params = SamplingParams { repetition_penalty: 2.0, logit_bias: vec![(1, 1.0)], ..greedy() };
    // 4 / 2 + 1 is above 2.9; (4 + 1) / 2 would not be.
    assert_eq!(sample(params, &[1], &[0.0, 4.0, 2.9, 0.0, 0.0]), Ok(1));
}

#[test]
fn nothing_ends_an_answer_before_min_tokens() {
    let params = SamplingParams { min_tokens: 2, stop_token_ids: vec![3], ..greedy() };
    let logits = [0.0, 1.0, 2.0, 3.0, 4.0];
    assert_eq!(sample(params.clone(), &[1], &logits), Ok(2));
    assert_eq!(sample(params.clone(), &[1, 1], &logits), Ok(4));
    let sampler = Sampler::new(params.clone(), &[0], &[1, 1], &[4]);
    assert!(sampler.ends(4) && sampler.ends(3) && !sampler.ends(2));
    let ignoring = SamplingParams { ignore_eos: true, ..params };
    assert_eq!(sample(ignoring.clone(), &[1], &logits), Ok(4));
    assert!(!Sampler::new(ignoring, &[0], &[1, 1], &[4]).ends(4));
}

#[test]
fn outputs_that_were_resumed_from_count() {
    let params =
        SamplingParams { presence_penalty: 1.0, frequency_penalty: 0.5, max_tokens: 4, ..SamplingParams::default() };
    let logits: Vec<f32> = (0..50).map(|id| (id % 7) as f32).collect();
    let mut scratch = Scratch::default();
    let mut whole = Sampler::new(params.clone(), &[9], &[], &[]);
    let mut outputs = Vec::new();
    while !whole.is_complete() {
        let mut resumed = Sampler::new(params.clone(), &[9], &outputs, &[]);
        let drawn = whole.sample(&mut logits.clone(), &mut scratch).unwrap();
        assert_eq!(resumed.sample(&mut logits.clone(), &mut scratch), Ok(drawn.clone()));
        assert_eq!(resumed.outputs(), outputs.len());
        whole.accept(drawn.token).unwrap();
        outputs.push(drawn.token);
    }
    assert_eq!(outputs.len(), 4);
}

#[test]
fn logits_that_are_no_numbers_are_an_error() {
    for bad in [f32::NAN, f32::INFINITY] {
        for params in [greedy(), SamplingParams::default()] {
            assert_eq!(sample(params, &[], &[0.0, 1.0, bad, 0.0, 0.0]), Err(Unsampleable::Logits));
        }
    }
    assert_eq!(sample(greedy(), &[], &[f32::NEG_INFINITY; 5]), Err(Unsampleable::Logits));
    let mut long = vec![0.0; 100];
    long[37] = f32::NAN;
    assert_eq!(sample(greedy(), &[], &long), Err(Unsampleable::Logits));
}

#[test]
fn frequencies_are_those_of_the_softmax() {
    let logits = [0.0, 1.0, 2.0, 0.5, -1.0];
    let params = SamplingParams { temperature: 0.7, seed: 42, max_tokens: u32::MAX, ..SamplingParams::default() };
    let mut sampler = Sampler::new(params, &[0], &[], &[]);
    let mut scratch = Scratch::default();
    let mut counts = [0.0; 5];
    let draws = 40_000.0;
    for _ in 0..draws as usize {
        let token = sampler.sample(&mut logits.to_vec(), &mut scratch).unwrap().token;
        counts[token as usize] += 1.0;
        sampler.accept(token).unwrap();
    }
    let weights = logits.map(|logit| (f64::from(logit) / 0.7).exp());
    let total: f64 = weights.iter().sum();
    let chi_square: f64 = weights
        .iter()
        .zip(counts)
        .map(|(weight, count): (&f64, f64)| {
            let expected = weight / total * draws;
            (count - expected).powi(2) / expected
        })
        .sum();
    // The 99.9th percentile with 4 degrees of freedom.
    assert!(chi_square < 18.47, "{chi_square}");
}

#[test]
fn parameters_out_of_range_are_named() {
    let sound = SamplingParams::default();
    assert_eq!(sound.check(&[], 10), Ok(()));
    let cases = [
        ("temperature", SamplingParams { temperature: -0.1, ..sound.clone() }),
        ("temperature", SamplingParams { temperature: f32::NAN, ..sound.clone() }),
        ("top_p", SamplingParams { top_p: 0.0, ..sound.clone() }),
        ("top_p", SamplingParams { top_p: 1.5, ..sound.clone() }),
        ("min_p", SamplingParams { min_p: -0.5, ..sound.clone() }),
        ("repetition_penalty", SamplingParams { repetition_penalty: 0.0, ..sound.clone() }),
        ("presence_penalty", SamplingParams { presence_penalty: 3.0, ..sound.clone() }),
        ("frequency_penalty", SamplingParams { frequency_penalty: f32::NAN, ..sound.clone() }),
        ("logit_bias", SamplingParams { logit_bias: vec![(1, 101.0)], ..sound.clone() }),
        ("top_logprobs", SamplingParams { top_logprobs: Some(21), ..sound.clone() }),
        ("min_tokens", SamplingParams { min_tokens: 2, max_tokens: 1, ..sound.clone() }),
        ("stop_token_ids", SamplingParams { min_tokens: 1, stop_token_ids: (0..10).collect(), ..sound }),
    ];
    for (field, params) in cases {
        assert_eq!(params.check(&[], 10).unwrap_err().field, field);
    }
}

/// The language of words `1 2* 3`, and after them the end.
#[derive(Debug, Default)]
struct Brackets(Vec<TokenId>);

impl Grammar for Brackets {
    fn allowed(&mut self) -> Result<&[u32], grammar::Error> {
        Ok(match self.0.last() {
            None => &[0b0000_0010],
            Some(3) => &[0b0001_0000],
            Some(_) => &[0b0000_1100],
        })
    }

    fn accept(&mut self, token: TokenId) -> Result<(), grammar::Error> {
        let allowed = self.allowed()?[0];
        self.0.push(token);
        if allowed >> token & 1 == 1 { Ok(()) } else { Err(grammar::Error(format!("{token} is not allowed"))) }
    }
}

/// A sampler that is held to them; 4 is the end of text.
fn bracketed(params: SamplingParams) -> Sampler {
    let mut sampler = Sampler::new(params, &[0], &[], &[4]);
    sampler.constrain(Box::<Brackets>::default(), &[4]);
    sampler
}

/// Draws until an end comes: the outputs, and the end or why there is none.
fn run(mut sampler: Sampler, logits: &[f32]) -> (Vec<TokenId>, Result<TokenId, Unsampleable>) {
    let mut outputs = Vec::new();
    while outputs.len() < 50 {
        match sampler.sample(&mut logits.to_vec(), &mut Scratch::default()) {
            Ok(Draw { token, .. }) if sampler.ends(token) => return (outputs, Ok(token)),
            Ok(Draw { token, .. }) => {
                sampler.accept(token).unwrap();
                outputs.push(token);
            }
            Err(error) => return (outputs, Err(error)),
        }
    }
    panic!("no end: {outputs:?}");
}

#[test]
fn a_grammar_lets_through_only_its_words_and_ends_them() {
    // What the model likes best is what the grammar never allows.
    let logits = [9.0, 0.0, 1.0, 1.5, 5.0, 8.0];
    assert_eq!(run(bracketed(greedy()), &logits), (vec![1, 3], Ok(4)));
    for seed in 0..50 {
        let (word, end) = run(bracketed(SamplingParams { seed, max_tokens: 50, ..SamplingParams::default() }), &logits);
        assert_eq!((word[0], *word.last().unwrap(), end), (1, 3, Ok(4)));
        assert!(word[1..word.len() - 1].iter().all(|token| *token == 2));
    }
}

#[test]
fn a_whole_word_ends_whatever_asks_it_to_go_on() {
    let logits = [9.0, 0.0, 1.0, 1.5, 5.0, 8.0];
    let long = SamplingParams { min_tokens: 5, ..greedy() };
    assert_eq!(run(bracketed(long), &logits), (vec![1, 3], Ok(4)));
    let deaf = SamplingParams { ignore_eos: true, ..greedy() };
    assert_eq!(run(bracketed(deaf), &logits), (vec![1, 3], Ok(4)));
}

/// May end at any point, and go on.
#[derive(Debug)]
struct Anything;

impl Grammar for Anything {
    fn allowed(&mut self) -> Result<&[u32], grammar::Error> {
        Ok(&[0b0001_1111])
    }

    fn accept(&mut self, _: TokenId) -> Result<(), grammar::Error> {
        Ok(())
    }
}

#[test]
fn an_end_that_is_not_the_only_way_waits_for_min_tokens() {
    let logits = [0.0, 0.0, 1.0, 1.5, 5.0, 8.0];
    let mut sampler = Sampler::new(SamplingParams { min_tokens: 3, ..greedy() }, &[0], &[], &[4]);
    sampler.constrain(Box::new(Anything), &[4]);
    assert_eq!(run(sampler, &logits), (vec![3, 3, 3], Ok(4)));
}

#[test]
fn stop_ids_end_a_word_early_and_are_held_back_by_min_tokens() {
    let logits = [9.0, 0.0, 1.0, 1.5, 5.0, 8.0];
    let stopping = SamplingParams { stop_token_ids: vec![3], ..greedy() };
    assert_eq!(run(bracketed(stopping.clone()), &logits), (vec![1], Ok(3)));
    let late = SamplingParams { min_tokens: 3, ..stopping };
    assert_eq!(run(bracketed(late), &logits), (vec![1, 2, 2], Ok(3)));
    // Nothing is left where every way on is a stop id that must wait.
    let stuck = SamplingParams { stop_token_ids: vec![1], min_tokens: 1, ..greedy() };
    assert_eq!(run(bracketed(stuck), &logits), (vec![], Err(Unsampleable::NothingAllowed)));
}

#[test]
fn log_probabilities_are_the_raw_logits_whatever_changes_the_draw() {
    let logits = [9.0, 0.0, 1.0, 1.5, 5.0, 8.0];
    let total = logits.iter().map(|logit: &f32| f64::from(*logit).exp()).sum::<f64>().ln();
    let params = SamplingParams {
        top_logprobs: Some(2),
        temperature: 0.3,
        presence_penalty: 1.0,
        logit_bias: vec![(1, -50.0)],
        ..SamplingParams::default()
    };
    let drawn = bracketed(params).sample(&mut logits.to_vec(), &mut Scratch::default()).unwrap();
    let told = drawn.logprob.unwrap();
    assert_eq!(drawn.token, 1);
    assert!((f64::from(told.logprob) - (0.0 - total)).abs() < 1e-5);
    assert_eq!(told.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [0, 5]);
    assert!((f64::from(told.top[1].1) - (8.0 - total)).abs() < 1e-5);
}

fn params() -> impl Strategy<Value = SamplingParams> {
    let temperature = prop_oneof![Just(0.0f32), 0.2f32..2.0];
    let top_k = prop_oneof![Just(0u32), 1u32..80];
    let top_p = prop_oneof![Just(1.0f32), 0.1f32..1.0];
    let logprobs = prop_oneof![Just(None), (0u32..6).prop_map(Some)];
    (temperature, top_k, top_p, logprobs, any::<u64>(), 0.5f32..2.0).prop_map(
        |(temperature, top_k, top_p, top_logprobs, seed, repetition_penalty)| SamplingParams {
            temperature,
            top_k,
            top_p,
            top_logprobs,
            seed,
            repetition_penalty,
            ..SamplingParams::default()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn draws_are_the_same_on_any_number_of_threads(
        params in prop::collection::vec(params(), 1..20), threads in 1usize..5, spread in 1u32..40
    ) {
        const VOCAB: usize = 333;
        let mut logits: Vec<f32> =
            (0..params.len() * VOCAB).map(|i| ((i * i * 37 + i * 11) % 1009) as f32 / 1009.0 * spread as f32).collect();
        let sampler = |params: &SamplingParams| Sampler::new(params.clone(), &[3, 5], &[], &[]);
        let alone: Vec<_> = params
            .iter()
            .zip(logits.chunks_exact(VOCAB))
            .map(|(params, row)| sampler(params).sample(&mut row.to_vec(), &mut Scratch::default()))
            .collect();
        let mut cpu = Cpu::new(NonZeroUsize::new(threads).unwrap(), Isa::detect());
        let turns: Vec<_> = params.iter().map(|params| Mutex::new((sampler(params), None))).collect();
        cpu.each_row(&mut logits, VOCAB, &|row, logits| {
            let (sampler, drawn) = &mut *turns[row].lock().unwrap();
            *drawn = Some(sampler.sample(logits, &mut Scratch::default()));
        });
        let together: Vec<_> = turns.into_iter().map(|turn| turn.into_inner().unwrap().1.unwrap()).collect();
        prop_assert_eq!(together, alone);
    }
}
