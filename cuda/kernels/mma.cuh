// Matrix products of a warp on the tensor cores: mma.sync and ldmatrix of the PTX ISA (sections
// "Matrix Fragments for mma.m16n8k16 with floating point type" and "ldmatrix").
//
// Lane l of a warp has the numbers g = l / 4 and t = l % 4:
//
//     A, 16 x 16: register 0 holds columns 2t and 2t + 1 of row g; register 1 those of row g + 8;
//                 registers 2 and 3 hold the same rows, 8 columns further.
//     B, 16 x 8:  register 0 holds rows 2t and 2t + 1 of column g; register 1 those 8 rows further.
//     C, 16 x 8:  values 0 and 1 are columns 2t and 2t + 1 of row g; values 2 and 3 those of row g + 8.
#pragma once

#include "simt.cuh"

// The A operand: 16 rows of 16 values of two bytes.
struct MatrixA { u32 word[4]; };

template <class T> constexpr bool is_bf16 = false;
template <> constexpr bool is_bf16<bf16> = true;

#ifndef __CUDACC_RTC__
namespace emulator {

// A row of 16 bytes of the matrices, and what the lane gets of all of them.
struct MatrixRow {
    const u16* row;
    u32 taken[4];
    template <bool transposed> static void all(void* const* operands) {
        for (i32 lane = 0; lane < 32; lane++) {
            auto& own = *static_cast<MatrixRow*>(operands[lane]);
            check_aligned(own.row);
            for (i32 matrix = 0; matrix < 4; matrix++) {
                u16 pair[2];
                for (i32 i = 0; i < 2; i++) {
                    const i32 row = transposed ? lane % 4 * 2 + i : lane / 4;
                    const i32 column = transposed ? lane / 4 : lane % 4 * 2 + i;
                    pair[i] = static_cast<MatrixRow*>(operands[matrix * 8 + row])->row[column];
                }
                own.taken[matrix] = pair[0] | u32(pair[1]) << 16;
            }
        }
    }
};

// A lane's parts of a product.
template <class T> struct Product {
    T a[4][2], b[2][2];
    float c[4];
    static void all(void* const* operands) {
        float a[16][16], b[16][8];
        for (i32 lane = 0; lane < 32; lane++) {
            auto& of = *static_cast<Product*>(operands[lane]);
            const i32 g = lane / 4, t = lane % 4;
            for (i32 i = 0; i < 2; i++) {
                for (i32 word = 0; word < 4; word++)
                    a[g + word % 2 * 8][word / 2 * 8 + t * 2 + i] = to_float(of.a[word][i]);
                for (i32 word = 0; word < 2; word++) b[word * 8 + t * 2 + i][g] = to_float(of.b[word][i]);
            }
        }
        for (i32 lane = 0; lane < 32; lane++) {
            auto& of = *static_cast<Product*>(operands[lane]);
            for (i32 i = 0; i < 4; i++)
                for (i32 k = 0; k < 16; k++)
                    of.c[i] += a[lane / 4 + i / 2 * 8][k] * b[k][lane % 4 * 2 + i % 2];
        }
    }
};

}  // namespace emulator
#endif

// Four matrices of 8 x 8 values of two bytes from shared memory. Lane l gives the address of row
// l % 8 of matrix l / 8 (16 bytes, aligned). Of each matrix a lane gets columns 2t and 2t + 1 of row
// g, or if they are transposed rows 2t and 2t + 1 of column g.
template <bool transposed> DEVICE void load_matrices(u32 (&to)[4], const void* row) {
#ifdef __CUDACC_RTC__
    const u32 from = u32(__cvta_generic_to_shared(row));
    if constexpr (transposed)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(from) : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(from) : "memory");
#else
    emulator::MatrixRow operand{static_cast<const u16*>(row), {}};
    emulator::meet("load_matrices", FULL_WARP, &operand, emulator::MatrixRow::all<transposed>, emulator::Site::here());
    memcpy(to, operand.taken, sizeof to);
#endif
}

// c += a * b, for A and B of bf16 or f16, summed in f32.
template <class T> DEVICE void multiply_add(float (&c)[4], const MatrixA& a, u32 b0, u32 b1) {
#ifdef __CUDACC_RTC__
    if constexpr (is_bf16<T>)
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
            "{%8, %9}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "r"(b0), "r"(b1));
    else
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
            "{%8, %9}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "r"(b0), "r"(b1));
#else
    emulator::Product<T> operand;
    memcpy(operand.a, a.word, sizeof operand.a);
    memcpy(operand.b[0], &b0, 4);
    memcpy(operand.b[1], &b1, 4);
    memcpy(operand.c, c, sizeof operand.c);
    emulator::meet("multiply_add", FULL_WARP, &operand, emulator::Product<T>::all, emulator::Site::here());
    memcpy(c, operand.c, sizeof operand.c);
#endif
}
