;; Takes table elements for ever. Rust has no word for this, so it is written in WebAssembly itself.
(module
  (memory (export "memory") 1)
  (table $taken 0 funcref)
  (global $free (mut i32) (i32.const 1024))

  ;; The request is written from 1024 on, in pieces of whole 8 bytes.
  (func (export "cabi_realloc") (param $old i32) (param $from i32) (param $align i32) (param $size i32)
    (result i32)
    (local $at i32)
    (local.set $at (global.get $free))
    (global.set $free
      (i32.and (i32.add (i32.add (global.get $free) (local.get $size)) (i32.const 7)) (i32.const -8)))
    (block $fits
      (loop $more
        (br_if $fits
          (i32.le_u (global.get $free) (i32.shl (memory.size) (i32.const 16))))
        (br_if $more (i32.ge_s (memory.grow (i32.const 1)) (i32.const 0)))
        (unreachable)))
    (local.get $at))

  ;; Its result lies at 0, where all is zero: it is good.
  (func (export "realm:program/steering@0.1.0#start")
    (param $prompt i32) (param i32) (param $args i32) (param i32) (param $vocabulary i32) (param $choice i32)
    (result i32)
    (i32.const 0))

  ;; Traps once no more are given.
  (func (export "realm:program/steering@0.1.0#advance") (param $accepted i32) (param i32) (result i32)
    (loop $more
      (br_if $more
        (i32.ge_s (table.grow $taken (ref.null func) (i32.const 1024)) (i32.const 0))))
    (unreachable)))
