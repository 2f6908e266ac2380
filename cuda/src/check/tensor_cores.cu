// A product of matrices of 16 x 32 and 32 x 16 values by the tensor cores, each operand taken from
// shared memory as it lies there or transposed.
#include "mma.cuh"

struct Params {
    const ELEMENT* a;  // [16, 32]
    const ELEMENT* b;  // [16, 32], its columns are those of the second operand's transpose
    const ELEMENT* c;  // [32, 16], the second operand as it is
    f32* out;          // [2, 16, 16]: a * transpose(b), and a * c
};

constexpr i32 WIDE = 40, NARROW = 24;

KERNEL(products, Params, 32) {
    SHARED(ELEMENT, a, 16 * WIDE);
    SHARED(ELEMENT, b, 16 * WIDE);
    SHARED(ELEMENT, c, 32 * NARROW);
    for (i32 i = lane(); i < 64; i += WARP) {
        copy_async16(a + i / 4 * WIDE + i % 4 * 8, p.a + i * 8);
        copy_async16(b + i / 4 * WIDE + i % 4 * 8, p.b + i * 8);
        copy_async16(c + i / 2 * NARROW + i % 2 * 8, p.c + i * 8);
    }
    copy_async_commit();
    copy_async_wait<0>();
    __syncwarp();
    float sums[2][2][4] = {};
    for (i32 step = 0; step < 2; step++) {
        MatrixA left;
        load_matrices<false>(left.word, a + lane() % 16 * WIDE + step * 16 + lane() / 16 * 8);
        u32 right[4];
        load_matrices<false>(right, b + (lane() % 8 + lane() / 16 * 8) * WIDE + step * 16 + lane() / 8 % 2 * 8);
        multiply_add<ELEMENT>(sums[0][0], left, right[0], right[1]);
        multiply_add<ELEMENT>(sums[0][1], left, right[2], right[3]);
        load_matrices<true>(right, c + (step * 16 + lane() % 16) * NARROW + lane() / 16 * 8);
        multiply_add<ELEMENT>(sums[1][0], left, right[0], right[1]);
        multiply_add<ELEMENT>(sums[1][1], left, right[2], right[3]);
    }
    for (i32 which = 0; which < 2; which++)
        for (i32 n = 0; n < 2; n++)
            for (i32 i = 0; i < 4; i++)
                p.out[(which * 16 + lane() / 4 + i / 2 * 8) * 16 + n * 8 + lane() % 4 * 2 + i % 2] = sums[which][n][i];
}
