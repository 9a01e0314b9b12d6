use super::*;

fn sample(params: SamplingParams, outputs: &[TokenId], logits: &[f32]) -> Result<TokenId, Unsampleable> {
    let sampler = Sampler::new(params, &[0], outputs, &[4]);
    sampler.sample(&mut logits.to_vec(), &mut Scratch::default())
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
        let resumed = Sampler::new(params.clone(), &[9], &outputs, &[]);
        let token = whole.sample(&mut logits.clone(), &mut scratch).unwrap();
        assert_eq!(resumed.sample(&mut logits.clone(), &mut scratch), Ok(token));
        assert_eq!(resumed.outputs(), outputs.len());
        whole.accept(token);
        outputs.push(token);
    }
    assert_eq!(outputs.len(), 4);
}

#[test]
fn logits_that_are_no_numbers_are_an_error() {
    for bad in [f32::NAN, f32::INFINITY] {
        for params in [greedy(), SamplingParams::default()] {
            assert_eq!(sample(params, &[], &[0.0, 1.0, bad, 0.0, 0.0]), Err(Unsampleable));
        }
    }
    assert_eq!(sample(greedy(), &[], &[f32::NEG_INFINITY; 5]), Err(Unsampleable));
    let mut long = vec![0.0; 100];
    long[37] = f32::NAN;
    assert_eq!(sample(greedy(), &[], &long), Err(Unsampleable));
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
        let token = sampler.sample(&mut logits.to_vec(), &mut scratch).unwrap();
        counts[token as usize] += 1.0;
        sampler.accept(token);
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
        ("min_tokens", SamplingParams { min_tokens: 2, max_tokens: 1, ..sound.clone() }),
        ("stop_token_ids", SamplingParams { min_tokens: 1, stop_token_ids: (0..10).collect(), ..sound }),
    ];
    for (field, params) in cases {
        assert_eq!(params.check(&[], 10).unwrap_err().field, field);
    }
}
