//! Arithmetic of the networks: the same bits on every machine.
//!
//! `exp` of the C library differs in its last bit between versions and processors, and a training run carries such a bit
//! far. Here are only additions, multiplications and divisions, whose results IEEE 754 fixes and which Rust does not fuse.

/// `e^x` with a relative error below 1e-6; 0 below -87, and never infinite.
///
/// Source: the splitting `x = n ln 2 + r` with ln 2 in two parts, and a Taylor polynomial for `e^r`, |r| ≤ 0.35.
pub(super) fn exp(x: f32) -> f32 {
    const HIGH: f32 = 0.693_359_4;
    const LOW: f32 = -2.121_944_4e-4;
    if x < -87.0 {
        return 0.0;
    }
    // Not a number stays none: max and min would turn it into a number.
    let x = if x > 87.0 { 87.0 } else { x };
    let n = (x * std::f32::consts::LOG2_E).round();
    let r = (x - n * HIGH) - n * LOW;
    let poly = 1.0 / 5040.0;
    let poly = [720.0, 120.0, 24.0, 6.0, 2.0, 1.0, 1.0].iter().fold(poly, |sum, factorial| sum * r + 1.0 / factorial);
    // 2^n, by its bits: n is within -126..=126.
    poly * f32::from_bits(((n as i32 + 127) as u32) << 23)
}

/// The logistic function, 0 to 1.
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The hyperbolic tangent, -1 to 1.
pub(super) fn tanh(x: f32) -> f32 {
    // Above 9 it is 1 to the last bit of a float.
    let x = if x > 9.0 { 9.0 } else { x };
    let x = if x < -9.0 { -9.0 } else { x };
    let e = exp(2.0 * x);
    (e - 1.0) / (e + 1.0)
}

/// `y += a x`, as far as the shorter one goes.
pub(super) fn axpy(y: &mut [f32], a: f32, x: &[f32]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += a * x);
}

/// The scalar product. Eight sums at a time, always the same eight, so that the compiler may use vectors and the order
/// of additions is fixed.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 8];
    let (a8, a_rest) = a.as_chunks::<8>();
    let (b8, b_rest) = b.as_chunks::<8>();
    for (a, b) in a8.iter().zip(b8) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

/// Turns scores into probabilities in place, and says the logarithm of the sum that they were divided by.
pub(super) fn softmax(scores: &mut [f32]) -> f32 {
    let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for score in scores.iter_mut() {
        *score = exp(*score - most);
        sum += *score;
    }
    scores.iter_mut().for_each(|score| *score /= sum);
    most + sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_the_functions_they_are_called() {
        for step in -2000..=2000 {
            let x = step as f32 / 100.0;
            let wide = f64::from(x);
            assert!((f64::from(exp(x)) / wide.exp() - 1.0).abs() < 1e-6, "exp {x}");
            assert!((f64::from(tanh(x)) - wide.tanh()).abs() < 1e-6, "tanh {x}");
            assert!((f64::from(sigmoid(x)) - 1.0 / (1.0 + (-wide).exp())).abs() < 1e-6, "sigmoid {x}");
        }
        assert_eq!((exp(-1e9), exp(-200.0)), (0.0, 0.0));
        assert!(exp(1e9).is_finite() && exp(f32::NAN).is_nan());
        assert_eq!((tanh(1e9), tanh(-1e9)), (1.0, -1.0));
    }

    #[test]
    fn sums_take_all_elements() {
        let a: Vec<f32> = (0..19).map(|n| n as f32).collect();
        assert_eq!(dot(&a, &a), (0..19).map(|n| (n * n) as f32).sum::<f32>());
        let mut scores = [1.0, 2.0, 3.0];
        let log_sum = softmax(&mut scores);
        assert!((scores.iter().sum::<f32>() - 1.0).abs() < 1e-6 && scores[2] > scores[1]);
        assert!((log_sum - (1f32.exp() + 2f32.exp() + 3f32.exp()).ln()).abs() < 1e-5);
    }
}
