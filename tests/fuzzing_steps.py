"""The steps of random graphs: each draws an operator with its arguments from what a pool has, and adds a line."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import strategies as st

from tests.fuzzing import Pool, Spec

FLOATS = """
relu(x) sigmoid(x) tanh(x) sin(x) cos(x) atan(x) erf(x) exp(x.clamp(-4,4)) expm1(x.tanh()) sqrt(x.abs()+0.3)
rsqrt(x.abs()+0.3) log(x.abs()+0.3) log1p(x.abs()) reciprocal(x.abs()+0.5) floor(x) ceil(x) round(x) trunc(x) frac(x)
asinh(x) sinh(x.clamp(-3,3)) tan(x.tanh()) exp2(x.clamp(-4,4)) nan_to_num(x) isnan(x) isfinite(x)
logit(x.sigmoid()*0.8+0.1)
""".split()
NEURAL = """
gelu(x) gelu(x,approximate="tanh") silu(x) mish(x) elu(x) elu(x,0.5) selu(x) celu(x) leaky_relu(x,0.1) softplus(x)
softsign(x) hardswish(x) hardsigmoid(x) hardtanh(x,-0.5,0.7) relu6(x) logsigmoid(x) tanhshrink(x) softshrink(x,0.3)
hardshrink(x,0.3) threshold(x,0.1,-0.2)
""".split()
ANY = """
x.abs() x.neg() x.sign() x.square() x.clamp(-1,2) x.clamp(min=0) x+2 2-x 1.5*x x*3 x/3 x**2 x//2 x%3 x+0.25 -x
x.reciprocal().clamp(-3,3) x.clone() x.contiguous() x>0 x<=1 x==0 x!=1 x.logical_not() torch.ones_like(x)
torch.full_like(x,2) torch.zeros_like(x)+x x.new_full((2,),3) torch.fmod(x,2) torch.pow(x,3) x.bool()
""".split()
INTEGERS = "x&3 x|1 x^2 ~x x//3 x%4 x.bitwise_left_shift(1) torch.div(x,2,rounding_mode='trunc') x*x x-7".split()
BINARY = """
a+b a-b a*b a/(b.abs()+0.5) torch.maximum(a,b) torch.minimum(a,b) torch.add(a,b,alpha=2) torch.sub(a,b,alpha=3) a>b a<b
a>=b a==b a!=b torch.atan2(a,b.abs()+0.5) torch.where(a>b,a,b) torch.where(b>0,a,2) a.masked_fill(b>0.5,-1)
torch.logical_and(a,b) torch.logical_or(a,b) torch.logical_xor(a,b) torch.lerp(a,b,0.3) torch.hypot(a,b.abs()+0.1)
(a.abs()+0.5)**b.clamp(-2,2) a//(b.abs()+1) a%(b.abs()+1) torch.addcmul(a,b,b,value=0.5) torch.fmod(a,b.abs()+1)
torch.clamp(a,max=b) torch.clamp(a,min=b) a&b a|b a^b F.mse_loss(a,b) torch.isin(a,b) torch.rsub(a,b)
torch.xlogy(a,b.abs()+0.5) F.prelu(a,b.flatten()[:1])
""".split()
REDUCTIONS = """
sum mean amax amin prod var std any all argmax argmin logsumexp norm median count_nonzero cumsum aminmax
""".split()
NAMED = ("any", "all", "argmax", "argmin", "cumsum", "median", "aminmax", "prod")
ONE = ("argmax", "argmin", "cumsum", "median", "aminmax", "prod")


def is_float(value: torch.Tensor) -> bool:
    return value.is_floating_point()


def is_integer(value: torch.Tensor) -> bool:
    return value.dtype in (torch.int64, torch.int32)


def _put(template: str, **names: str) -> str:
    """A template with its single letters replaced where they are names of their own."""
    import re

    return re.sub(r"\b([abx])\b(?!\()", lambda found: names.get(found[1], found[1]), template)


def unary(pool: Pool) -> None:
    kind = pool.draw(st.sampled_from(["float", "neural", "any", "any", "integer"]))
    wanted = {"any": lambda value: True, "integer": is_integer}.get(kind, is_float)
    name = pool.pick(wanted)
    if name is None:
        return
    templates = {"float": FLOATS, "neural": NEURAL, "any": ANY, "integer": INTEGERS}[kind]
    prefix = {"float": "torch.", "neural": "F."}.get(kind, "")
    pool.step((name,), prefix + _put(pool.draw(st.sampled_from(templates)), x=name))


def binary(pool: Pool) -> None:
    first = pool.pick()
    assert first is not None
    shape = pool.eager(first).shape

    def broadcasts(value: torch.Tensor) -> bool:
        pairs = zip(reversed(shape), reversed(value.shape), strict=False)
        return all(one == other or 1 in (one, other) for one, other in pairs)

    second = pool.pick(broadcasts)
    assert second is not None
    if pool.draw(st.integers(0, 3)) == 0 and shape and pool.fixed(first, -1):
        second = pool.constant(Spec((shape[-1],), pool.draw(st.sampled_from(["float32", "int64"]))))
    pool.step((first, second), _put(pool.draw(st.sampled_from(BINARY)), a=first, b=second))


def view(pool: Pool) -> None:
    draw = pool.draw
    name = pool.pick(lambda value: value.dim() > 0)
    if name is None:
        return
    value = pool.eager(name)
    rank, axis = value.dim(), pool.axis(name)
    other = pool.axis(name)
    size = value.shape[axis]
    start, stop = draw(st.integers(-size, size - 1)), draw(st.integers(-size, size + 2))
    order = draw(st.permutations(range(rank)))
    index = [":"] * (axis % rank)
    forms = [
        f"{name}.transpose({axis},{other})",
        f"{name}.permute({order})",
        f"{name}.unsqueeze({axis})",
        f"{name}.squeeze({axis})",
        f"{name}.squeeze()",
        f"{name}.flatten({axis % rank})",
        f"{name}.flatten()",
        f"{name}.reshape(-1)",
        f"{name}.reshape({name}.shape[0],-1)",
        f"{name}.reshape(-1,{name}.shape[-1])",
        f"{name}.unflatten({axis},(-1,1))",
        f"{name}.unflatten({axis},(2,-1))",
        f"{name}.movedim({axis},{other})",
        f"{name}.flip({axis})",
        f"{name}.roll({draw(st.integers(-3, 3))},{axis})",
        f"{name}.roll((1,2),({axis},{other}))",
        f"{name}.unsqueeze({axis % rank}).expand({'-1,' * (axis % rank)}2{',-1' * (rank - axis % rank)})",
        f"{name}.repeat({', '.join(map(str, draw(st.lists(st.integers(1, 2), min_size=rank, max_size=rank + 1))))})",
        f"{name}.repeat_interleave(2,{axis})",
        f"{name}.narrow({axis},0,1)",
        f"{name}.select({axis},{draw(st.integers(-size, size - 1))})",
        f"{name}[{', '.join([*index, f'{start}:{stop}'])}]",
        f"{name}[{', '.join([*index, f'{start}::2'])}]",
        f"{name}[{', '.join([*index, f':{stop}:3'])}]",
        f"{name}[..., None]",
        f"{name}[None, ..., 0]",
        f"{name}.diagonal(0,{axis},{other})",
        f"{name}.tril({draw(st.integers(-2, 2))})",
        f"{name}.triu({draw(st.integers(-2, 2))})",
        f"{name}.unfold({axis},2,{draw(st.integers(1, 2))})",
        f"{name}.swapaxes(0,-1)",
        f"{name}.mT",
        f"torch.arange({name}.shape[{axis}]) * 2",
        f"{name}.view(torch.int32)",
        f"{name}.chunk(2,{axis})",
        f"{name}.split(2,{axis})",
        f"{name}.unbind({axis})",
        f"{name}.tensor_split(2,{axis})",
        f"{name}.split([1,{max(size - 1, 0)}],{axis})",
    ]
    pool.step((name,), draw(st.sampled_from(forms)))


def join(pool: Pool) -> None:
    first = pool.pick(lambda value: value.dim() > 0)
    if first is None:
        return
    shape = pool.eager(first).shape
    axis = pool.axis(first)
    same = pool.pick(lambda value: value.shape == shape)
    assert same is not None
    alike = pool.pick(
        lambda value: (
            value.dim() == len(shape)
            and all(
                one == two or at == axis % len(shape)
                for at, (one, two) in enumerate(zip(value.shape, shape, strict=True))
            )
        )
    )
    assert alike is not None
    form = pool.draw(
        st.sampled_from(
            [
                f"torch.cat([{first},{alike}],{axis})",
                f"torch.cat([{alike},{first},{same}],{axis})",
                f"torch.stack([{first},{same}],{axis})",
                f"torch.stack([{first},{same}])",
                f"torch.cat([{first}.flatten(),{alike}.flatten()])",
            ]
        )
    )
    pool.step((first, alike, same), form)


def reduction(pool: Pool) -> None:
    draw = pool.draw
    op = draw(st.sampled_from(REDUCTIONS))
    integers = op in ("any", "all", "sum", "count_nonzero", "amax", "cumsum", "amin", "argmax")
    name = pool.pick(lambda value: value.dim() > 0 and (is_float(value) or integers))
    if name is None:
        return
    axis, other, keep = pool.axis(name), pool.axis(name), draw(st.booleans())
    rank = pool.eager(name).dim()
    dims = str(axis) if op in ONE or op in NAMED or axis % rank == other % rank else f"({axis},{other})"
    keyword = "" if op in ("cumsum", "count_nonzero") else f",keepdim={keep}"
    form = draw(st.integers(0, 3))
    if form == 0 and op not in ("cumsum", "logsumexp"):
        text = f"{name}.{op}()"
    elif op == "norm":
        order = draw(st.sampled_from(["1", "2", "3", "torch.inf"]))
        text = f"torch.linalg.vector_norm({name},{order},{dims}{keyword})"
    elif op in ("var", "std") and form == 1:
        text = f"{name}.{op}({dims},correction=0{keyword})"
    elif op == "median":
        text = f"{name}.median({dims}{keyword})[0]"
    elif op == "aminmax":
        text = f"torch.aminmax({name},dim={axis}{keyword})"
    else:
        text = f"{name}.{op}({dims}{keyword})"
    pool.step((name,), text)


def product(pool: Pool) -> None:
    draw = pool.draw
    name = pool.pick(lambda value: is_float(value) and value.dim() > 0)
    if name is None:
        return
    value = pool.eager(name)
    dtype, last = str(value.dtype).removeprefix("torch."), value.shape[-1]
    width = draw(st.sampled_from([1, 2, 3, 4, 8]))
    fixed = pool.fixed(name, -1)
    kind = draw(st.sampled_from(["linear", "matmul", "pair", "einsum", "conv", "conv", "bilinear"]))
    if kind in ("linear", "matmul", "bilinear") and fixed:
        if kind == "linear":
            weight = pool.constant(Spec((width, last), dtype))
            bias = draw(st.sampled_from(["", f",{pool.constant(Spec((width,), dtype))}"]))
            pool.step((name,), f"F.linear({name},{weight}{bias})")
        elif kind == "matmul":
            weight = pool.constant(
                Spec(draw(st.sampled_from([(last, width), (last,), (1, last, 2), (2, last, width)])), dtype)
            )
            pool.step((name,), f"{name} @ {weight}")
        else:
            weight = pool.constant(Spec((2, last, last), dtype))
            pool.step((name,), f"F.bilinear({name},{name},{weight})")
    elif kind == "pair":
        other = pool.pick(lambda each: each.dtype == value.dtype and each.dim() > 0)
        form = draw(
            st.sampled_from(
                [
                    "{a} @ {b}.mT",
                    "{a} @ {b}",
                    "{a}.mT @ {b}",
                    "torch.outer({a}.flatten(), {b}.flatten())",
                    "{a} @ {a}.mT",
                ]
            )
        )
        pool.step((name, str(other)), form.format(a=name, b=other))
    elif kind == "einsum":
        other = pool.pick(lambda each: each.dtype == value.dtype and each.dim() == value.dim())
        forms = {
            1: ["i,i->", "i,j->ij", "i,i->i"],
            2: ["ij,ij->i", "ij,kj->ik", "ij,ik->jk"],
            3: ["bij,bkj->bik", "bij,bij->b"],
        }
        if value.dim() in forms:
            form = draw(st.sampled_from(forms[value.dim()]))
            pool.step((name, str(other)), f"torch.einsum({form!r},{name},{other})")
    elif kind == "conv" and value.dim() in (3, 4, 5) and pool.fixed(name, 1):
        channels = value.shape[1]
        groups = draw(st.sampled_from([each for each in (1, 2, channels) if channels % each == 0]))
        spatial = value.dim() - 2
        kernel = draw(st.sampled_from([1, 2, 3]))
        transposed = draw(st.booleans()) and spatial < 3
        out = groups * draw(st.sampled_from([1, 2]))
        shape = (channels, out // groups) if transposed else (out, channels // groups)
        weight = pool.constant(Spec((*shape, *[kernel] * spatial), dtype))
        bias = pool.constant(Spec((out,), dtype)) if draw(st.booleans()) else "None"
        options = f"stride={draw(st.sampled_from([1, 2]))},padding={draw(st.sampled_from([0, 1]))},groups={groups}"
        if not transposed:
            options += f",dilation={draw(st.sampled_from([1, 2]))}"
        pool.step((name,), f"F.conv{'_transpose' if transposed else ''}{spatial}d({name},{weight},{bias},{options})")


def normalization(pool: Pool) -> None:
    draw = pool.draw
    name = pool.pick(lambda value: is_float(value) and value.dim() > 0)
    if name is None:
        return
    value = pool.eager(name)
    dtype, last, axis = str(value.dtype).removeprefix("torch."), value.shape[-1], pool.axis(name)
    forms = [
        f"F.softmax({name},{axis})",
        f"F.log_softmax({name},{axis})",
        f"F.softmin({name},{axis})",
        f"F.normalize({name},dim={axis})",
    ]
    if pool.fixed(name, -1):
        weight, bias = pool.constant(Spec((last,), dtype)), pool.constant(Spec((last,), dtype))
        forms += [
            f"F.layer_norm({name},({last},),{weight},{bias})",
            f"F.layer_norm({name},({last},))",
            f"F.rms_norm({name},({last},),{weight})",
        ]
    if value.dim() > 1 and pool.fixed(name, 1):
        channels = value.shape[1]
        spec = Spec((channels,), dtype)
        one, two = pool.constant(spec), pool.constant(spec)
        forms += [
            f"F.batch_norm({name},{one},{two}.abs()+0.1,{two},{one})",
            f"F.group_norm({name},{2 if channels % 2 == 0 else 1},{one},{two})",
            f"F.instance_norm({name},weight={one},bias={two})",
        ]
    pool.step((name,), draw(st.sampled_from(forms)))


def index(pool: Pool) -> None:
    draw = pool.draw
    name = pool.pick(lambda value: value.dim() > 0)
    if name is None:
        return
    axis = pool.axis(name)
    value = pool.eager(name)
    rank, size = value.dim(), min(runs.eager.shape[axis] for runs in pool.values[name])
    indices = pool.constant(Spec(draw(st.sampled_from([(2,), (3,), (2, 2)])), "int64", below=size, index=True))
    flat = pool.constant(Spec((draw(st.sampled_from([1, 3])),), "int64", below=size, index=True))
    before = ":," * (axis % rank)
    condition = pool.pick(lambda each: each.dtype == torch.bool)
    forms = [
        f"{name}[{before}{indices}]",
        f"{name}[{before}{flat}]",
        f"{name}.index_select({axis},{flat})",
        f"torch.take_along_dim({name},({name}>0).long().cumsum({axis}) % {size},{axis})",
        f"{name}.gather({axis},({name}.abs()*7).long() % {size})",
        f"{name}.topk({draw(st.integers(1, size))},{axis})[0]",
        f"{name}.sort({axis})[0]",
        f"{name}.argsort({axis},stable=True)",
        f"{name}.max({axis})",
        f"{name}.min({axis},keepdim=True)",
        f"{name}.take({flat})",
        f"F.embedding({flat},{name}.flatten(1))",
        f"{name}.index_fill({axis},{flat},2)",
        f"torch.slice_scatter({name},{name}.narrow({axis},0,1)*2,{axis},0,1)",
        f"torch.select_scatter({name},{name}.select({axis},0)+1,{axis},-1)",
        f"F.one_hot(({name}.abs()*3).long() % 4,4)",
        f"{name}[..., {indices}, :]",
        f"{name}[{flat}, {flat}]",
        f"{name}[{flat}, :, {flat}]",
        f"torch.scatter({name},{axis},({name}.abs()*7).long() % {size},{name})",
        f"{name}.index_add({axis},{flat},{name}.index_select({axis},{flat}))",
    ]
    if condition is not None:
        forms += [f"torch.where({condition},{name},{name}*2)", f"{name}.masked_fill({condition},3)"]
    pool.step((name, str(condition)), draw(st.sampled_from(forms)))


def cast(pool: Pool) -> None:
    name = pool.pick()
    assert name is not None
    kinds = ["float32", "int64", "int32", "bool"] + (["float16", "float16"] if pool.half else [])
    kind = pool.draw(st.sampled_from(kinds))
    scale = pool.draw(st.sampled_from(["", "", "*3"]))
    pool.step((name,), f"({name}{scale}).to(torch.{kind})")


def window(pool: Pool) -> None:
    draw = pool.draw
    name = pool.pick(lambda value: is_float(value) and value.dim() in (3, 4))
    if name is None:
        return
    spatial = pool.eager(name).dim() - 2
    pads = ",".join(str(draw(st.integers(-1, 2))) for _ in range(2 * draw(st.integers(1, spatial))))
    kernel, stride, padding = draw(st.sampled_from([(2, 2, 0), (3, 1, 1), (3, 2, 1), (1, 2, 0), (2, 1, 1)]))
    small = ",".join(["1"] * 2 * spatial)
    mode = "linear" if spatial == 1 else "bilinear"
    forms = [
        f"F.max_pool{spatial}d({name},{kernel},{stride},{padding})",
        f"F.max_pool{spatial}d({name},{kernel},{stride},{padding},ceil_mode=True)",
        f"F.avg_pool{spatial}d({name},{kernel},{stride},{padding})",
        f"F.avg_pool{spatial}d({name},{kernel},{stride},{padding},ceil_mode=True,count_include_pad=False)",
        f"F.adaptive_avg_pool{spatial}d({name},{draw(st.sampled_from([1, 2]))})",
        f"F.adaptive_max_pool{spatial}d({name},1)",
        f"F.pad({name},({pads}))",
        f"F.pad({name},({pads}),value=2.5)",
        f"F.pad({name},({small}),mode='reflect')",
        f"F.pad({name},({small}),mode='replicate')",
        f"F.pad({name},({small}),mode='circular')",
        f"F.interpolate({name},scale_factor=2)",
        f"F.interpolate({name},scale_factor=2,mode={mode!r})",
        f"F.interpolate({name},size=5,mode={mode!r},align_corners=True)",
        f"F.interpolate({name},scale_factor=0.5,mode='nearest-exact')",
        f"F.pixel_shuffle({name},2)",
        f"F.pixel_unshuffle({name},2)",
        f"F.channel_shuffle({name},2)",
        f"F.unfold({name},2)",
        f"F.scaled_dot_product_attention({name},{name},{name})",
        f"F.scaled_dot_product_attention({name},{name},{name},is_causal=True)",
    ]
    pool.step((name,), draw(st.sampled_from(forms)))


STEPS: list[Callable[[Pool], None]] = [
    *(unary, unary, unary, binary, binary, binary, view, view, view),
    *(join, reduction, reduction, product, product, normalization, index, index, cast, window),
]
