use super::*;
use Operation as O;

fn tensor(shape: &[i64], numbers: &[f32]) -> Tensor {
    Tensor::from_slice(numbers).reshape(shape)
}

/// What an operation makes: its shape, which is as it was foretold, and its numbers.
fn run(operation: &Operation, of: &[Tensor]) -> Result<(Shape, Vec<f32>), String> {
    let shapes: Vec<_> = of.iter().map(Tensor::size).collect();
    let shapes: Vec<&[i64]> = shapes.iter().map(Vec::as_slice).collect();
    let shape = result(operation, &shapes)?;
    let made = compute(operation, of)?;
    assert_eq!(made.size(), shape, "{operation:?}");
    assert_eq!(made.kind(), Kind::Float, "{operation:?}");
    let numbers = made.contiguous().reshape([-1]);
    Ok((shape, Vec::try_from(&numbers).expect("numbers")))
}

#[test]
fn operations_compute_what_they_say() {
    const MINUS: f32 = f32::NEG_INFINITY;
    let a = || tensor(&[2, 3], &[1.0, -2.0, 3.0, 0.0, 5.0, -6.0]);
    let b = || tensor(&[3], &[2.0, 4.0, -1.0]);
    let c = || tensor(&[2, 1], &[10.0, 20.0]);
    type Case<'a> = (Operation, Vec<Tensor>, &'a [i64], &'a [f32]);
    let cases: [Case<'_>; 23] = [
        (
            O::Add,
            vec![a(), b()],
            &[2, 3],
            &[3.0, 2.0, 2.0, 2.0, 9.0, -7.0],
        ),
        (
            O::Subtract,
            vec![c(), b()],
            &[2, 3],
            &[8.0, 6.0, 11.0, 18.0, 16.0, 21.0],
        ),
        (
            O::Multiply,
            vec![a(), c()],
            &[2, 3],
            &[10.0, -20.0, 30.0, 0.0, 100.0, -120.0],
        ),
        (O::Divide, vec![b(), b()], &[3], &[1.0, 1.0, 1.0]),
        (
            O::Maximum,
            vec![a(), b()],
            &[2, 3],
            &[2.0, 4.0, 3.0, 2.0, 5.0, -1.0],
        ),
        (
            O::Minimum,
            vec![a(), b()],
            &[2, 3],
            &[1.0, -2.0, -1.0, 0.0, 4.0, -6.0],
        ),
        (
            O::Where,
            vec![a(), b()],
            &[2, 3],
            &[2.0, MINUS, -1.0, 2.0, 4.0, MINUS],
        ),
        (
            O::Where,
            vec![b(), c()],
            &[2, 3],
            &[10.0, 10.0, MINUS, 20.0, 20.0, MINUS],
        ),
        (
            O::Matmul,
            vec![a(), tensor(&[3, 2], &[1.0, 0.0, 0.0, 1.0, 2.0, 2.0])],
            &[2, 2],
            &[7.0, 4.0, -12.0, -7.0],
        ),
        (O::Scale(-2.0), vec![b()], &[3], &[-4.0, -8.0, 2.0]),
        (O::Shift(0.5), vec![b()], &[3], &[2.5, 4.5, -0.5]),
        (O::Exp, vec![tensor(&[2], &[0.0, MINUS])], &[2], &[1.0, 0.0]),
        (O::Log, vec![tensor(&[2], &[1.0, 0.0])], &[2], &[0.0, MINUS]),
        (
            O::Softmax,
            vec![tensor(&[2, 2], &[0.0, 0.0, 5.0, MINUS])],
            &[2, 2],
            &[0.5, 0.5, 1.0, 0.0],
        ),
        (O::Sum, vec![a()], &[2, 1], &[2.0, -1.0]),
        (O::Mean, vec![b()], &[1], &[5.0 / 3.0]),
        (O::Max, vec![a()], &[2, 1], &[3.0, 5.0]),
        (O::Norm, vec![tensor(&[2], &[3.0, -4.0])], &[1], &[5.0]),
        (
            O::Gather(vec![2, 0, 2]),
            vec![a()],
            &[2, 3],
            &[3.0, 1.0, 3.0, -6.0, 0.0, -6.0],
        ),
        (
            O::Mask(vec![0b101]),
            vec![a()],
            &[2, 3],
            &[1.0, MINUS, 3.0, 0.0, MINUS, -6.0],
        ),
        (
            O::Transpose,
            vec![a()],
            &[3, 2],
            &[1.0, 0.0, -2.0, 5.0, 3.0, -6.0],
        ),
        (
            O::Slice((1, 1, 2)),
            vec![a()],
            &[2, 2],
            &[-2.0, 3.0, 5.0, -6.0],
        ),
        (
            O::Concat(1),
            vec![a(), c(), c()],
            &[2, 5],
            &[1.0, -2.0, 3.0, 10.0, 10.0, 0.0, 5.0, -6.0, 20.0, 20.0],
        ),
    ];
    for (operation, of, shape, numbers) in cases {
        let (made, of_it) = run(&operation, &of).unwrap_or_else(|e| panic!("{operation:?}: {e}"));
        assert_eq!(made, shape, "{operation:?}");
        assert_eq!(of_it, numbers, "{operation:?}");
    }
    let (_, reshaped) = run(&O::Reshape(vec![3, 1, 2]), &[a()]).expect("as many");
    assert_eq!(reshaped, [1.0, -2.0, 3.0, 0.0, 5.0, -6.0]);
    let (_, log) = run(&O::LogSoftmax, &[tensor(&[2], &[0.0, 0.0])]).expect("one");
    assert!(
        log.iter()
            .all(|number| (number + std::f32::consts::LN_2).abs() < 1e-6)
    );
}

#[test]
fn what_makes_no_sense_is_refused_before_it_is_tried() {
    let large = u32::MAX;
    let cases: &[(Operation, &[&[i64]], &str)] = &[
        (O::Add, &[&[3], &[2]], "`add` of [[3], [2]]"),
        (O::Add, &[&[3]], "`add`"),
        (O::Add, &[&[3], &[3], &[3]], "`add`"),
        (O::Add, &[&[2048, 1], &[1, 4096]], "at most"),
        (O::Where, &[&[3], &[4]], "`where`"),
        (O::Exp, &[], "`exp`"),
        (O::Scale(f32::NAN), &[&[3]], "no number"),
        (O::Matmul, &[&[2, 3], &[2, 3]], "`matmul`"),
        (O::Matmul, &[&[3], &[3, 1]], "`matmul`"),
        (
            O::Matmul,
            &[&[1024, 4096], &[4096, 1024]],
            "multiplications",
        ),
        (O::Matmul, &[&[4096, 1], &[1, 4096]], "at most"),
        (O::Gather(vec![0, 3]), &[&[2, 3]], "at 3"),
        (O::Gather(vec![large]), &[&[3]], "at 4294967295"),
        (O::Gather(vec![]), &[&[3]], "at most"),
        (O::Gather(vec![0; 5000]), &[&[1024, 3]], "at most"),
        (O::Reshape(vec![5]), &[&[2, 3]], "`reshape`"),
        (O::Reshape(vec![]), &[&[1]], "at most"),
        (O::Reshape(vec![1, 1, 1, 1, 6]), &[&[6]], "at most"),
        (O::Reshape(vec![large, large, large]), &[&[6]], "at most"),
        (O::Transpose, &[&[6]], "`transpose`"),
        (O::Slice((1, 0, 1)), &[&[6]], "`slice`"),
        (O::Slice((0, 6, 1)), &[&[6]], "`slice`"),
        (O::Slice((0, 0, 0)), &[&[6]], "`slice`"),
        (O::Slice((0, large, large)), &[&[6]], "`slice`"),
        (O::Concat(0), &[], "`concat`"),
        (O::Concat(1), &[&[2], &[2]], "`concat`"),
        (O::Concat(0), &[&[2, 2], &[2, 3]], "`concat`"),
    ];
    for (operation, of, part) in cases {
        let error = result(operation, of).expect_err("refused");
        assert!(error.contains(part), "{error} without {part}");
    }
    assert!(shape(&[]).is_err() && shape(&[3, 0]).is_err() && shape(&[large, large]).is_err());
    let name = name(&O::LogSoftmax);
    assert_eq!(name, "log-softmax");
}

#[test]
fn what_is_just_large_enough_is_possible() {
    assert!(shape(&[4, 1 << 20]).is_ok() && shape(&[(4 << 20) + 1]).is_err());
    assert!(shape(&[1; 4]).is_ok() && shape(&[1; 5]).is_err());
    let product = |rows| result(&O::Matmul, &[&[1024, 256], &[256, rows]]);
    assert_eq!(product(256), Ok(vec![1024, 256]));
    assert!(product(257).is_err());
    let parts = |count| result(&O::Concat(0), &vec![&[2_i64] as &[i64]; count]);
    assert_eq!(parts(64), Ok(vec![128]));
    assert!(parts(65).is_err());
}

proptest::proptest! {
    /// What is found possible is possible, for libtorch as well.
    #[test]
    fn libtorch_agrees_about_shapes(
        a in proptest::collection::vec(1i64..4, 1..4),
        b in proptest::collection::vec(1i64..4, 1..4),
        n in 0u32..4,
        m in 0u32..4,
    ) {
        let ones = |shape: &[i64]| Tensor::ones(shape, (Kind::Float, tch::Device::Cpu));
        for operation in [
            O::Add, O::Where, O::Matmul, O::Concat(n), O::Slice((n, m, 1)), O::Gather(vec![n, m]),
            O::Transpose, O::Sum, O::Mask(vec![n]), O::Reshape(vec![n, m]), O::Softmax, O::Max,
        ] {
            for of in [vec![&a[..]], vec![&a[..], &b[..]]] {
                if let Ok(shape) = result(&operation, &of) {
                    let of: Vec<_> = of.iter().map(|shape| ones(shape)).collect();
                    let made = compute(&operation, &of).expect("possible");
                    proptest::prop_assert_eq!(made.size(), shape);
                }
            }
        }
    }
}
