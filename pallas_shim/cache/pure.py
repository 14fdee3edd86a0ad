"""Which functions, classes and constants of the libraries are pure.

The results of a pure function depend only on its arguments, JAX's configuration and the library's
version. A name in neither table is unknown, and a program that reaches it isn't kept. A test
compares the tables with the installed libraries.
"""

from __future__ import annotations

# The pure public names of each module, for all supported versions of JAX together.
PURE: dict[str, str] = {
    "jax": """
        Array Inline P Ref ShapeDtypeStruct allow_f16_reductions checkpoint
        checkpoint_policies closure_convert custom_gradient custom_jvp custom_remat
        custom_vjp default_backend default_matmul_precision default_prng_impl ds empty_ref
        enable_custom_prng enable_custom_vjp_by_custom_transpose enable_x64
        ensure_compile_time_eval eval_shape float0 free_ref freeze fwd_and_bwd grad
        hessian jacfwd jacobian jacrev jax2tf_associative_scan_reductions jit jvp
        legacy_prng_key linear_transpose linearize named_call named_scope new_ref
        numpy_dtype_promotion numpy_rank_promotion remat
        remove_size_one_mesh_axis_from_type softmax_custom_jvp threefry_partitionable
        typeof value_and_grad vjp vmap
    """,
    "jax.ad_checkpoint": """
        Offloadable Recompute Saveable checkpoint checkpoint_name checkpoint_name_fwd
        checkpoint_policies remat
    """,
    "jax.custom_batching": """
        custom_vmap sequential_vmap
    """,
    "jax.custom_derivatives": """
        CustomVJPPrimal SymbolicZero closure_convert custom_gradient custom_jvp custom_vjp
        custom_vjp_primal_tree_values linear_call zero_from_primal
    """,
    "jax.dtypes": """
        TypePromotionError bfloat16 canonicalize_dtype extended finfo float0 iinfo
        issubdtype itemsize_bits prng_key result_type scalar_type_of
    """,
    "jax.errors": """
        ConcretizationTypeError InconclusiveDimensionOperation JAXIndexError JAXTypeError
        JaxRuntimeError JaxprTypeError KeyReuseError NonConcreteBooleanIndexError
        TracerArrayConversionError TracerBoolConversionError TracerIntegerConversionError
        UnexpectedTracerError
    """,
    "jax.experimental.pallas": """
        ANY BlockDim BlockSpec Blocked BoundedSlice Buffered CompilerParams CostEstimate
        DeviceIdType Element GridSpec HOST Indirect MemoryRef MemorySpace RevisitMode
        Slice Squeezed align_to broadcast_to cdiv core_map debug_check debug_print delay
        dot ds dslice empty empty_like empty_ref_like kernel loop max_contiguous
        multiple_of next_power_of_2 no_block_spec num_programs pallas_call program_id
        reciprocal run_scoped run_state select_ref semaphore semaphore_read
        semaphore_signal semaphore_wait squeezed strides_from_shape swap when with_scoped
    """,
    "jax.experimental.pallas.mosaic_gpu": """
        ACC Barrier BlockSpec ClusterBarrier CompilerParams CopyPartition GMEM
        InterpretGPUParams Layout LoweringSemantics MemoryRefTransform MemorySpace Mesh
        NDLoopInfo OOBFillMode PeerMemRef PipelinePipeline REGS RefType RefUnion
        Replicated SMEM SemaphoreSignal SemaphoreType ShapeDtypeStruct SwizzleTransform
        TMEM TMEMLayout Tiling TilingTransform TraceScope Transform TransposeTransform
        TryClusterCancelResult WGMMAAccumulatorRef WarpMesh alloc_semaphore
        async_copy_scales_to_tmem async_copy_smem_to_tmem
        async_copy_sparse_metadata_to_tmem async_load_tmem async_prefetch async_store_smem
        async_store_tmem atomic_add atomic_and atomic_max atomic_min atomic_or atomic_xor
        barrier_arrive barrier_arrive_and_wait barrier_test barrier_wait broadcasted_iota
        cluster_ref commit_smem commit_smem_to_gmem_group commit_tmem copy_gmem_to_smem
        copy_smem_to_gmem dynamic_scheduling_loop emit_pipeline
        emit_pipeline_warp_specialized find_swizzle format_tcgen05_sparse_metadata
        griddepcontrol_launch_dependents griddepcontrol_wait im2col_ref kernel layout_cast
        load max min mma multicast_ref multimem_load_reduce multimem_store nd_loop
        planar_snake prod query_cluster_cancel remote_ref semaphore_signal
        semaphore_signal_multicast semaphore_signal_parallel semaphore_wait
        set_max_registers store sum tcgen05_commit_arrive tcgen05_mma transform_ref
        transpose_ref try_cluster_cancel unswizzle_ref untile_ref wait_gmem_to_smem
        wait_load_tmem wait_smem_to_gmem warp_map wgmma wgmma_accumulator_load wgmma_wait
    """,
    "jax.experimental.pallas.tpu": """
        ACC ANY ARBITRARY BufferType BufferedRef BufferedRefBase CMEM CORE_PARALLEL
        ChipVersion CompilerParams CoreType DeviceIdType GridDimensionSemantics HBM HOST
        InterpretParams KernelType LoweringException MemorySpace PARALLEL PipelineStep
        PrefetchScalarGridSpec SEMAPHORE SMEM SUBCORE_PARALLEL SemaphoreType
        SideEffectType TensorCoreMesh Tiling TpuInfo VMEM VMEM_SHARED annotate async_copy
        async_remote_copy bitcast conv core_barrier delay dma_semaphore einshape
        emit_pipeline emit_pipeline_with_allocations emit_pipeline_with_async_prefetch
        get_barrier_semaphore get_pipeline_schedule get_tpu_info get_tpu_info_for_chip
        has_memory_space is_tpu_device join_bits load make_async_copy
        make_async_remote_copy make_pipeline_allocations matmul_acc_lhs matmul_lhs_fifo
        matmul_pop matmul_pop_fifo matmul_push_rhs pack_elementwise pack_fp6
        prng_random_bits prng_seed reciprocal repeat roll run_on_first_core sample_block
        semaphore semaphore_read semaphore_signal semaphore_wait split_bits
        stateful_bernoulli stateful_bits stateful_normal stateful_uniform stochastic_round
        store sync_copy to_pallas_key touch trace_value unpack_elementwise unpack_fp6
        with_memory_space_constraint
    """,
    "jax.experimental.pallas.tpu_sc": """
        BlockSpec Indices MemoryRef PackFormat ScalarSubcoreMesh
        SparseCorePushStreamWarning VectorSubcoreMesh addupdate addupdate_compressed
        addupdate_scatter all_reduce_ffs all_reduce_population_count bitcast cummax cumsum
        fetch_and_add get_sparse_core_info kernel load_expanded load_gather masked_cumsum
        pack parallel_loop scan_count slice_subcore_vmem_from_shared sort_key_val
        store_compressed store_scatter subcore_barrier unpack
    """,
    "jax.experimental.pallas.triton": """
        CUSTOM_CALL_TARGET_NAME CompilerParams GpuInfo GpuVersion approx_tanh atomic_add
        atomic_and atomic_cas atomic_max atomic_min atomic_or atomic_xchg atomic_xor
        debug_barrier dot get_gpu_info get_gpu_info_from_version is_gpu_device load
        max_contiguous store
    """,
    "jax.extend.random": """
        random_seed rbg_prng_impl seed_with_impl threefry_2x32 threefry_prng_impl
        unsafe_rbg_prng_impl
    """,
    "jax.lax": """
        AccuracyMode ConvDimensionNumbers ConvGeneralDilatedDimensionNumbers DotAlgorithm
        DotAlgorithmPreset DotDimensionNumbers FftType GatherDimensionNumbers
        GatherScatterMode Precision PrecisionLike RaggedDotDimensionNumbers
        RandomAlgorithm RoundingMethod ScatterDimensionNumbers Tolerance abs acos acosh
        add after_all all_gather all_gather_done all_gather_invariant all_gather_start
        all_to_all approx_max_k approx_min_k argmax argmin asin asinh associative_scan
        atan atan2 atanh axis_index axis_size batch_matmul bessel_i0e bessel_i1e betainc
        bitcast_convert_type bitwise_and bitwise_not bitwise_or bitwise_xor broadcast
        broadcast_in_dim broadcast_like broadcast_shapes broadcast_to_rank
        broadcasted_iota cbrt ceil clamp clz collapse complex composite concatenate cond
        conj conv conv_dimension_numbers conv_general_dilated conv_general_dilated_local
        conv_general_dilated_patches conv_general_permutations conv_general_shape_tuple
        conv_shape_tuple conv_transpose conv_transpose_shape_tuple
        conv_with_general_padding convert_element_type cos cosh create_token cumlogsumexp
        cummax cummin cumprod cumsum custom_linear_solve custom_root dce_sink digamma div
        dot dot_general dtype dynamic_index_in_dim dynamic_slice dynamic_slice_in_dim
        dynamic_update_index_in_dim dynamic_update_slice dynamic_update_slice_in_dim empty
        eq erf erf_inv erfc exp exp2 expand_dims expm1 fft floor fori_loop full full_like
        gather ge gt igamma igamma_grad_a igammac imag index_in_dim index_take integer_pow
        iota is_finite le lgamma log log1p log2 logistic lt map max min mul mulhi ne neg
        nextafter one_minus_square optimization_barrier pad padtype_to_pads pbroadcast
        platform_dependent pmax pmean pmin polygamma polynomial population_count pow
        ppermute precv psend pshuffle psum psum_scatter psum_scatter_start pswapaxes
        ragged_all_to_all ragged_dot ragged_dot_general random_gamma_grad real reciprocal
        reduce reduce_and reduce_max reduce_min reduce_or reduce_precision reduce_prod
        reduce_sum reduce_window reduce_window_shape_tuple reduce_xor rem reshape rev
        rng_bit_generator rng_uniform round rsqrt scaled_dot scan scatter scatter_add
        scatter_apply scatter_max scatter_min scatter_mul scatter_sub select select_n
        shape_as_value shift_left shift_right_arithmetic shift_right_logical sign sin sinh
        slice slice_in_dim sort sort_key_val split sqrt square squeeze stack stage
        stop_gradient sub switch tan tanh tile top_k transpose unstack while_loop
        with_sharding_constraint zeta
    """,
    "jax.lax.linalg": """
        EigImplementation EighImplementation SvdAlgorithm cholesky cholesky_update eig
        eigh hessenberg householder_product lu lu_pivots_to_permutation ormqr qdwh qr
        schur svd symmetric_product triangular_solve tridiagonal tridiagonal_solve
    """,
    "jax.nn": """
        celu dot_product_attention elu gelu get_scaled_dot_general_config glu hard_sigmoid
        hard_silu hard_swish hard_tanh identity leaky_relu log1mexp log_sigmoid
        log_softmax logmeanexp logsumexp mish one_hot relu relu6 scaled_dot_general
        scaled_matmul selu sigmoid silu soft_sign softmax softplus sparse_plus
        sparse_sigmoid squareplus standardize swish tanh
    """,
    "jax.nn.initializers": """
        Initializer constant delta_orthogonal glorot_normal glorot_uniform he_normal
        he_uniform kaiming_normal kaiming_uniform lecun_normal lecun_uniform normal ones
        orthogonal truncated_normal uniform variance_scaling xavier_normal xavier_uniform
        zeros
    """,
    "jax.numpy": """
        ComplexWarning abs absolute acos acosh add all allclose amax amin angle any append
        apply_along_axis apply_over_axes arange arccos arccosh arcsin arcsinh arctan
        arctan2 arctanh argmax argmin argpartition argsort argwhere around array
        array_equal array_equiv array_split asarray asin asinh astype atan atan2 atanh
        atleast_1d atleast_2d atleast_3d average bartlett bfloat16 bincount bitwise_and
        bitwise_count bitwise_invert bitwise_left_shift bitwise_not bitwise_or
        bitwise_right_shift bitwise_xor blackman block bool bool_ broadcast_arrays
        broadcast_shapes broadcast_to c_ can_cast cbrt cdouble ceil character choose clip
        column_stack complex128 complex64 complex_ complexfloating compress concat
        concatenate conj conjugate convolve copy copysign corrcoef correlate cos cosh
        count_nonzero cov cross csingle cumprod cumsum cumulative_prod cumulative_sum
        deg2rad degrees delete diag diag_indices diag_indices_from diagflat diagonal diff
        digitize divide divmod dot double dsplit dstack dtype e ediff1d einsum einsum_path
        empty empty_like equal euler_gamma exp exp2 expand_dims expm1 extract eye fabs
        fill_diagonal finfo fix flatnonzero flexible flip fliplr flipud float16 float32
        float4_e2m1fn float64 float6_e2m3fn float6_e3m2fn float8_e3m4 float8_e4m3
        float8_e4m3b11fnuz float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz
        float8_e8m0fnu float_ float_power floating floor floor_divide fmax fmin fmod frexp
        frombuffer fromfunction fromiter frompyfunc fromstring full full_like gcd generic
        geomspace gradient greater greater_equal hamming hanning heaviside histogram
        histogram2d histogram_bin_edges histogramdd hsplit hstack hypot i0 identity iinfo
        imag index_exp indices inexact inf inner insert int1 int16 int2 int32 int4 int64
        int8 int_ integer interp intersect1d invert isclose iscomplex iscomplexobj isdtype
        isfinite isin isinf isnan isneginf isposinf isreal isrealobj isscalar issubdtype
        iterable ix_ kaiser kron lcm ldexp left_shift less less_equal lexsort linspace log
        log10 log1p log2 logaddexp logaddexp2 logical_and logical_not logical_or
        logical_xor logspace mask_indices matmul matrix_transpose matvec max maximum mean
        median meshgrid mgrid min minimum minmax mod modf moveaxis multiply nan nan_to_num
        nanargmax nanargmin nancumprod nancumsum nanmax nanmean nanmedian nanmin
        nanpercentile nanprod nanquantile nanstd nansum nanvar ndarray ndim negative
        newaxis nextafter nonzero not_equal number object_ ogrid ones ones_like outer
        packbits pad partition percentile permute_dims pi piecewise place poly polyadd
        polyder polydiv polyfit polyint polymul polysub polyval positive pow power prod
        promote_types ptp put put_along_axis quantile r_ rad2deg radians ravel
        ravel_multi_index real reciprocal remainder repeat reshape resize result_type
        right_shift rint roll rollaxis roots rot90 round s_ searchsorted select setdiff1d
        setxor1d shape sign signbit signedinteger sin sinc single sinh size sort
        sort_complex spacing split sqrt square squeeze stack std subtract sum swapaxes
        take take_along_axis tan tanh tensordot tile top_k trace transpose trapezoid tri
        tril tril_indices tril_indices_from trim_zeros triu triu_indices triu_indices_from
        true_divide trunc ufunc uint uint1 uint16 uint2 uint32 uint4 uint64 uint8 union1d
        unique unique_all unique_counts unique_inverse unique_values unpackbits
        unravel_index unsignedinteger unstack unwrap vander var vdot vecdot vecmat
        vectorize vsplit vstack where zeros zeros_like
    """,
    "jax.numpy.fft": """
        fft fft2 fftfreq fftn fftshift hfft ifft ifft2 ifftn ifftshift ihfft irfft irfft2
        irfftn rfft rfft2 rfftfreq rfftn
    """,
    "jax.numpy.linalg": """
        cholesky cond cross det diagonal eig eigh eigvals eigvalsh inv lstsq matmul
        matrix_norm matrix_power matrix_rank matrix_transpose multi_dot norm outer pinv qr
        slogdet solve svd svdvals tensordot tensorinv tensorsolve trace vecdot vector_norm
    """,
    "jax.random": """
        Key PRNGKey ball bernoulli beta binomial bits categorical cauchy chisquare choice
        clone dirichlet double_sided_maxwell exponential f fold_in gamma
        generalized_normal geometric gumbel key key_data key_dtype key_impl laplace
        loggamma logistic lognormal maxwell multinomial multivariate_normal normal
        orthogonal pareto permutation poisson rademacher randint rayleigh split t
        triangular truncated_normal uniform wald weibull_min wrap_key_data
    """,
    "jax.ref": """
        AbstractRef Ref addupdate empty_ref free_ref freeze get new_ref set swap
    """,
    "jax.scipy.linalg": """
        block_diag cho_factor cho_solve cholesky circulant companion convolution_matrix
        det dft eigh eigh_tridiagonal expm expm_frechet fiedler fiedler_companion funm
        hadamard hankel helmert hessenberg hilbert inv invhilbert invpascal leslie lu
        lu_factor lu_solve pascal polar qr qr_multiply rsf2csf schur solve solve_sylvester
        solve_triangular sqrtm svd toeplitz
    """,
    "jax.scipy.signal": """
        convolve convolve2d correlate correlate2d csd detrend fftconvolve istft stft welch
    """,
    "jax.scipy.special": """
        bernoulli bessel_jn beta betainc betaln boxcox boxcox1p comb dawsn digamma entr
        erf erfc erfcinv erfcx erfinv exp1 expi expit expn factorial fresnel gamma
        gammainc gammaincc gammaln gammasgn hyp1f1 hyp2f1 i0 i0e i1 i1e kl_div log_ndtr
        log_softmax loggamma logit logsumexp multigammaln ndtr ndtri owens_t poch
        polygamma rel_entr sici softmax spence sph_harm_y wofz xlog1py xlogy zeta
    """,
    "jax.scipy.stats.norm": """
        cdf isf logcdf logpdf logsf pdf ppf sf
    """,
    "jax.tree": """
        all broadcast flatten flatten_with_path leaves leaves_with_path map map_with_path
        reduce reduce_associative static structure transpose unflatten
    """,
    "jax.tree_util": """
        DictKey FlattenedIndexKey GetAttrKey KeyEntry KeyPath Partial PyTreeDef
        SequenceKey all_leaves flatten_one_level flatten_one_level_with_keys is_tree_node
        keystr tree_all tree_broadcast tree_flatten tree_flatten_with_path tree_leaves
        tree_leaves_with_path tree_map tree_map_with_path tree_reduce
        tree_reduce_associative tree_structure tree_transpose tree_unflatten
        treedef_children treedef_is_leaf treedef_tuple
    """,
    "ml_dtypes": """
        bcomplex32 bfloat16 complex32 finfo float4_e2m1fn float6_e2m3fn float6_e3m2fn
        float8_e3m4 float8_e4m3 float8_e4m3b11fnuz float8_e4m3fn float8_e4m3fnuz
        float8_e5m2 float8_e5m2fnuz float8_e8m0fnu iinfo imag int1 int2 int4 real uint1
        uint2 uint4
    """,
    "numpy": """
        False_ ScalarType True_ abs absolute acos acosh add all allclose amax amin angle
        any append apply_along_axis apply_over_axes arange arccos arccosh arcsin arcsinh
        arctan arctan2 arctanh argmax argmin argpartition argsort argwhere around array
        array_equal array_equiv array_split asanyarray asarray asarray_chkfinite
        ascontiguousarray asfortranarray asin asinh astype atan atan2 atanh atleast_1d
        atleast_2d atleast_3d average bartlett base_repr binary_repr bincount bitwise_and
        bitwise_count bitwise_invert bitwise_left_shift bitwise_not bitwise_or
        bitwise_right_shift bitwise_xor blackman block bool bool_ broadcast
        broadcast_arrays broadcast_shapes broadcast_to byte bytes_ c_ can_cast cbrt
        cdouble ceil character choose clip clongdouble column_stack common_type complex128
        complex256 complex64 complexfloating compress concat concatenate conj conjugate
        convolve copy copysign corrcoef correlate cos cosh count_nonzero cov cross csingle
        cumprod cumsum cumulative_prod cumulative_sum deg2rad degrees delete diag
        diag_indices diag_indices_from diagflat diagonal diff digitize divide divmod dot
        double dsplit dstack dtype e ediff1d einsum einsum_path equal euler_gamma exp exp2
        expand_dims expm1 extract eye fabs finfo fix flatnonzero flexible flip fliplr
        flipud float128 float16 float32 float64 float_power floating floor floor_divide
        fmax fmin fmod frexp frombuffer fromfunction fromiter fromstring full full_like
        gcd generic geomspace gradient greater greater_equal half hamming hanning
        heaviside histogram histogram2d histogram_bin_edges histogramdd hsplit hstack
        hypot i0 identity iinfo imag index_exp indices inexact inf info inner insert int16
        int32 int64 int8 int_ intc integer interp intersect1d intp invert isclose
        iscomplex iscomplexobj isdtype isfinite isfortran isin isinf isnan isneginf
        isposinf isreal isrealobj isscalar issubdtype iterable ix_ kaiser kron lcm ldexp
        left_shift less less_equal lexsort linspace little_endian log log10 log1p log2
        logaddexp logaddexp2 logical_and logical_not logical_or logical_xor logspace long
        longdouble longlong mask_indices matmul matrix_transpose matvec max maximum mean
        median meshgrid mgrid min min_scalar_type minimum mintypecode mod modf moveaxis
        multiply nan nan_to_num nanargmax nanargmin nancumprod nancumsum nanmax nanmean
        nanmedian nanmin nanpercentile nanprod nanquantile nanstd nansum nanvar
        ndenumerate ndim ndindex negative newaxis nextafter nonzero not_equal number
        object_ ogrid ones ones_like outer packbits pad partition percentile permute_dims
        pi piecewise poly poly1d polyadd polyder polydiv polyfit polyint polymul polysub
        polyval positive pow power prod promote_types ptp quantile r_ rad2deg radians
        ravel ravel_multi_index real real_if_close reciprocal remainder repeat reshape
        resize result_type right_shift rint roll rollaxis roots rot90 round row_stack s_
        searchsorted select setdiff1d setxor1d shape short sign signbit signedinteger sin
        sinc single sinh size sort sort_complex spacing split sqrt square squeeze stack
        std str_ subtract sum swapaxes take take_along_axis tan tanh tensordot tile trace
        transpose trapezoid tri tril tril_indices tril_indices_from trim_zeros triu
        triu_indices triu_indices_from true_divide trunc typecodes ubyte ufunc uint uint16
        uint32 uint64 uint8 uintc uintp ulong ulonglong union1d unique unique_all
        unique_counts unique_inverse unique_values unpackbits unravel_index
        unsignedinteger unstack unwrap ushort vander var vdot vecdot vecmat vsplit vstack
        where zeros zeros_like
    """,
    "numpy.fft": """
        fft fft2 fftfreq fftn fftshift hfft ifft ifft2 ifftn ifftshift ihfft irfft irfft2
        irfftn rfft rfft2 rfftfreq rfftn
    """,
    "numpy.linalg": """
        LinAlgError cholesky cond cross det diagonal eig eigh eigvals eigvalsh inv lstsq
        matmul matrix_norm matrix_power matrix_rank matrix_transpose multi_dot norm outer
        pinv qr slogdet solve svd svdvals tensordot tensorinv tensorsolve trace vecdot
        vector_norm
    """,
    "scipy.special": """
        SpecialFunctionError SpecialFunctionWarning agm ai_zeros airy airye assoc_laguerre
        assoc_legendre_p assoc_legendre_p_all bdtr bdtrc bdtri bdtrik bdtrin bei bei_zeros
        beip beip_zeros ber ber_zeros bernoulli berp berp_zeros besselpoly beta betainc
        betaincc betainccinv betaincinv betaln bi_zeros binom boxcox boxcox1p btdtria
        btdtrib c_roots cbrt cg_roots chdtr chdtrc chdtri chdtriv chebyc chebys chebyt
        chebyu chndtr chndtridf chndtrinc chndtrix comb cosdg cosm1 cotdg dawsn digamma
        diric ellip_harm ellip_harm_2 ellip_normal ellipe ellipeinc ellipj ellipk
        ellipkinc ellipkm1 elliprc elliprd elliprf elliprg elliprj entr erf erf_zeros erfc
        erfcinv erfcx erfi erfinv euler eval_chebyc eval_chebys eval_chebyt eval_chebyu
        eval_gegenbauer eval_genlaguerre eval_hermite eval_hermitenorm eval_jacobi
        eval_laguerre eval_legendre eval_sh_chebyt eval_sh_chebyu eval_sh_jacobi
        eval_sh_legendre exp1 exp10 exp2 expi expit expm1 expn exprel factorial factorial2
        factorialk fdtr fdtrc fdtri fdtridfd fresnel fresnel_zeros fresnelc_zeros
        fresnels_zeros gamma gammainc gammaincc gammainccinv gammaincinv gammaln gammasgn
        gdtr gdtrc gdtria gdtrib gdtrix gegenbauer genlaguerre h1vp h2vp h_roots hankel1
        hankel1e hankel2 hankel2e he_roots hermite hermitenorm huber hyp0f1 hyp1f1 hyp2f1
        hyperu i0 i0e i1 i1e inv_boxcox inv_boxcox1p it2i0k0 it2j0y0 it2struve0 itairy
        iti0k0 itj0y0 itmodstruve0 itstruve0 iv ive ivp j0 j1 j_roots jacobi jn jn_zeros
        jnjnp_zeros jnp_zeros jnyn_zeros js_roots jv jve jvp k0 k0e k1 k1e kei kei_zeros
        keip keip_zeros kelvin kelvin_zeros ker ker_zeros kerp kerp_zeros kl_div kn
        kolmogi kolmogorov kv kve kvp l_roots la_roots laguerre lambertw legendre
        legendre_p legendre_p_all lmbda log1p log_expit log_ndtr log_softmax
        log_wright_bessel loggamma logit logsumexp lpmv lqmn lqn mathieu_a mathieu_b
        mathieu_cem mathieu_even_coef mathieu_modcem1 mathieu_modcem2 mathieu_modsem1
        mathieu_modsem2 mathieu_odd_coef mathieu_sem modfresnelm modfresnelp modstruve
        multigammaln nbdtr nbdtrc nbdtri nbdtrik nbdtrin ncfdtr ncfdtri ncfdtridfd
        ncfdtridfn ncfdtrinc nctdtr nctdtridf nctdtrinc nctdtrit ndtr ndtri ndtri_exp
        nrdtrimn nrdtrisd obl_ang1 obl_ang1_cv obl_cv obl_cv_seq obl_rad1 obl_rad1_cv
        obl_rad2 obl_rad2_cv owens_t p_roots pbdn_seq pbdv pbdv_seq pbvv pbvv_seq pbwa
        pdtr pdtrc pdtri pdtrik perm poch polygamma powm1 pro_ang1 pro_ang1_cv pro_cv
        pro_cv_seq pro_rad1 pro_rad1_cv pro_rad2 pro_rad2_cv ps_roots pseudo_huber psi
        radian rel_entr rgamma riccati_jn riccati_yn roots_chebyc roots_chebys
        roots_chebyt roots_chebyu roots_gegenbauer roots_genlaguerre roots_hermite
        roots_hermitenorm roots_jacobi roots_laguerre roots_legendre roots_sh_chebyt
        roots_sh_chebyu roots_sh_jacobi roots_sh_legendre round s_roots sh_chebyt
        sh_chebyu sh_jacobi sh_legendre shichi sici sinc sindg smirnov smirnovi softmax
        softplus spence sph_harm_y sph_harm_y_all sph_legendre_p sph_legendre_p_all
        spherical_in spherical_jn spherical_kn spherical_yn stdtr stdtridf stdtrit
        stirling2 struve t_roots tandg tklmbda ts_roots u_roots us_roots voigt_profile
        wofz wright_bessel wrightomega xlog1py xlogy y0 y0_zeros y1 y1_zeros y1p_zeros yn
        yn_zeros ynp_zeros yv yve yvp zeta zetac
    """,
}

# Names that read or change more: files, clocks, devices, the state of the process; and those that
# return uninitialised memory.
IMPURE: dict[str, str] = {
    "jax": """
        CompilerEffortLevel Device NamedSharding Shard ad array_garbage_collection_guard
        auto_pcast block_until_ready check_tracer_leaks checking_leaks clear_caches config
        copy_to_host_async debug_infs debug_key_reuse debug_nans default_device
        device_count device_get device_put device_put_replicated device_put_sharded
        devices disable_jit effects_barrier enable_checks explain_cache_misses
        get_abstract_mesh get_mesh host_count host_id host_ids live_arrays
        local_device_count local_devices log_compiles make_array_from_callback
        make_array_from_process_local_data make_array_from_single_device_arrays make_jaxpr
        make_mesh make_user_context memory no_execution no_tracing pmap
        print_environment_info process_count process_index process_indices pure_callback
        reshard set_mesh shard_map smap thread_guard transfer_guard
        transfer_guard_device_to_device transfer_guard_device_to_host
        transfer_guard_host_to_device use_abstract_mesh
    """,
    "jax.ad_checkpoint": """
        name_p print_saved_residuals
    """,
    "jax.core": """
        AbstractToken AbstractValue Atom CallPrimitive DShapedArray DebugInfo DropVar
        Effect Effects InconclusiveDimensionOperation JaxprPpContext JaxprPpSettings
        JaxprTypeError OutputType ParamDict ShapedArray Trace TraceTag Tracer
        UnshapedArray Value abstract_token aval_mapping_handlers call call_impl
        check_jaxpr concrete_or_error concretization_function_error custom_typechecks
        ensure_compile_time_eval eval_context eval_jaxpr find_top_trace gensym get_aval
        get_opaque_trace_state is_concrete is_constant_dim is_constant_shape
        jaxprs_in_params literalable_types mapped_aval max_dim min_dim new_jaxpr_eqn
        no_axis_name no_effects nonempty_axis_env_DO_NOT_USE primal_dtype_to_tangent_dtype
        pytype_aval_mappings set_current_trace subjaxprs take_current_trace trace_ctx
        traverse_jaxpr_params unmapped_aval unsafe_am_i_under_a_jit_DO_NOT_USE
        unsafe_am_i_under_a_vmap_DO_NOT_USE unsafe_get_axis_names_DO_NOT_USE valid_jaxtype
    """,
    "jax.custom_derivatives": """
        custom_jvp_call_p custom_vjp_call_p remat_opt_p
    """,
    "jax.debug": """
        DebugEffect OrderedDebugEffect breakpoint callback inspect_array_sharding log
        print visualize_array_sharding visualize_sharding
    """,
    "jax.experimental.pallas": """
        debug_checks_enabled enable_debug_checks enable_poison_buffers estimate_cost
        get_global lower_as_mlir pallas_call_p pallas_export_experimental
    """,
    "jax.experimental.pallas.mosaic_gpu": """
        as_torch_kernel force_gpu_interpret_mode inline_mgpu print_layout
        set_gpu_interpret_mode
    """,
    "jax.experimental.pallas.tpu": """
        create_tensorcore_mesh force_tpu_interpret_mode reset_tpu_interpret_mode_state
        set_tpu_interpret_mode verification
    """,
    "jax.experimental.pallas.triton": """
        elementwise_inline_asm
    """,
    "jax.extend.random": """
        define_prng_impl threefry2x32_p
    """,
    "jax.lax": """
        abs_p acos_p acosh_p add_p after_all_p all_gather_p all_to_all_p and_p
        approx_top_k_p argmax_p argmin_p asin_p asinh_p atan2_p atan_p atanh_p
        axis_index_p bessel_i0e_p bessel_i1e_p bitcast_convert_type_p broadcast_in_dim_p
        cbrt_p ceil_p clamp_p clz_p complex_p concatenate_p cond_p conj_p
        conv_general_dilated_p convert_element_type_p copy_p cos_p cosh_p create_token_p
        cumlogsumexp_p cummax_p cummin_p cumprod_p cumsum_p dce_sink_p device_put_p
        digamma_p div_p dot_general_p dynamic_slice_p dynamic_update_slice_p eq_p eq_to_p
        erf_inv_p erf_p erfc_p exp2_p exp_p expm1_p fft_p floor_p gather_p ge_p gt_p
        igamma_grad_a_p igamma_p igammac_p imag_p integer_pow_p iota_p is_finite_p le_p
        le_to_p lgamma_p linear_solve_p log1p_p log2_p log_p logistic_p lt_p lt_to_p max_p
        min_p mul_p mulhi_p ne_p neg_p nextafter_p not_p one_minus_square_p
        optimization_barrier_p or_p pad_p pcast pmax_p pmin_p polygamma_p polynomial_p
        population_count_p pow_p ppermute_p psum_p pvary ragged_all_to_all_p real_p
        reduce_and_p reduce_max_p reduce_min_p reduce_or_p reduce_p reduce_precision_p
        reduce_prod_p reduce_sum_p reduce_window_max_p reduce_window_min_p reduce_window_p
        reduce_window_sum_p reduce_xor_p regularized_incomplete_beta_p rem_p reshape_p
        rev_p rng_bit_generator_p rng_uniform_p round_p rsqrt_p scan_p scatter_add_p
        scatter_max_p scatter_min_p scatter_mul_p scatter_p scatter_sub_p
        select_and_gather_add_p select_and_scatter_add_p select_and_scatter_p select_n_p
        sharding_constraint_p shift_left_p shift_right_arithmetic_p shift_right_logical_p
        sign_p sin_p sinh_p slice_p sort_p split_p sqrt_p square_p squeeze_p stack_p
        stage_p stop_gradient_p sub_p tan_p tanh_p tile_p top_k_p transpose_p unstack_p
        while_p xor_p zeta_p
    """,
    "jax.lax.linalg": """
        cholesky_p cholesky_update_p eig_p eigh_p hessenberg_p householder_product_p lu_p
        lu_pivots_to_permutation_p ormqr_p qr_p schur_p svd_p symmetric_product_p
        triangular_solve_p tridiagonal_p tridiagonal_solve_p
    """,
    "jax.numpy": """
        array_repr array_str from_dlpack fromfile get_printoptions load printoptions save
        savez set_printoptions
    """,
    "jax.profiler": """
        ProfileData ProfileEvent ProfileLine ProfileOptions ProfilePlane ProfileSession
        StepTraceAnnotation TraceAnnotation annotate_function device_memory_profile
        export_profile_data register_subprocess save_device_memory_profile start_server
        start_trace stop_server stop_trace trace
    """,
    "jax.random": """
        random_gamma_p
    """,
    "jax.sharding": """
        AbstractDevice AbstractMesh AxisType ManualAxisType Mesh NamedSharding
        PartitionSpec PmapSharding Sharding SingleDeviceSharding UnreducedKind auto_axes
        explicit_axes get_abstract_mesh get_mesh make_single_device_sharding
        no_collectives reshard set_mesh use_abstract_mesh
    """,
    "jax.tree_util": """
        default_registry register_dataclass register_pytree_node
        register_pytree_node_class register_pytree_with_keys
        register_pytree_with_keys_class register_static
    """,
    "numpy": """
        array2string array_repr array_str asmatrix bmat busday_count busday_offset
        busdaycalendar copyto datetime64 datetime_as_string datetime_data empty empty_like
        errstate fill_diagonal flatiter format_float_positional format_float_scientific
        from_dlpack fromfile frompyfunc fromregex genfromtxt get_include get_printoptions
        getbufsize geterr geterrcall is_busday isnat load loadtxt matrix may_share_memory
        memmap ndarray nditer nested_iters place printoptions put put_along_axis putmask
        recarray record require save savetxt savez savez_compressed sctypeDict
        set_printoptions setbufsize seterr seterrcall shares_memory show_config
        show_runtime test timedelta64 typename vectorize void
    """,
    "numpy.fft": """
        test
    """,
    "numpy.linalg": """
        test
    """,
    "scipy.special": """
        errstate geterr seterr test
    """,
}

# The attributes that code may read from values, besides those of the user's own classes. They
# belong to numbers, texts, containers, arrays, references, blocks and the like, and never reveal an
# address in memory.
ATTRIBUTES = """
    match fullmatch search findall newbyteorder
    BARRIER CMEM DMA HBM HOST MMA_ACC MMA_LHS MMA_RHS REGULAR SEMAPHORE SMEM SMEM_GMEM_COPY
    StrongLRUCacheInfo T TCGEN05 TCGEN05_M64_COLLECTIVE TCGEN05_M64_COLLECTIVE_NATIVE
    TCGEN05_TMEM_NATIVE TCGEN05_TRANSPOSED TILED TMA_GATHER_INDICES TMA_INDICES TMA_INDICES_4
    VMEM VMEM_SHARED WGMMA WGMMA_8BIT WGMMA_TRANSPOSED WGMMA_UPCAST_2X WGMMA_UPCAST_4X
    WG_SPLAT WG_STRIDED _buffer_count _buffer_type _copy_in_slot_reg _copy_out_slot_reg
    _grid_rank _in_buffer_count _init _out_buffer_count _spec _used _wait_in_slot_reg
    _wait_out_slot_reg accum_ref accumulate accumulator add addupdate advance_copy_in_slot
    advance_copy_out_slot advance_next_fetch advance_wait_in_slot advance_wait_out_slot all
    allow_collective_id_without_custom_barrier allow_input_fusion any append appendleft apply
    approx_math argmax argmin argpartition args argsort array array_abstraction_level
    as_integer_ratio astype at at_least_vspace aux_data aval await_prefetch
    bf16_ops_per_second bind_existing_ref bit_count bit_length bitcast bits block_shape
    broadcast buffer_count buffer_type buffer_types byteorder bytes_accessed byteswap
    cache_clear cache_info cache_keys capitalize casefold center char children chip_version
    choose clear clip close_ cmem_capacity_bytes collective_id compose compress compute_index
    compute_slice conj conjugate copy copy_in copy_in_slot copy_out copy_out_slot count create
    cumprod cumsum cumulative_copy_in cumulative_copy_out cumulative_wait_in
    cumulative_wait_out current_copy_in_slot current_copy_out_slot current_ref
    current_wait_in_slot current_wait_out_slot dec_rank decode def_vmap default_factory defjvp
    defjvps defremat defremat_with_logs defvjp defvjp_with_accums defvjp_with_logs deleter
    denominator descr device_id device_id_type diagonal dimension_as_value dimension_semantics
    disable_bounds_checks disable_semaphore_checks divide dot dst_ref dst_sem
    dst_sem_transforms dst_transforms dtype elements encode end endswith eps epsneg eval_shape
    expandtabs extend extendleft fields fill find flat flatten flatten_up_to flops
    fp8_ops_per_second from_bytes from_decimal from_float from_indices_shape
    from_iterable_tree from_node_data_and_children from_slice fromhex fromkeys full_lower fun_
    func fuse_transposed_lhs_in_matmul generation get get_array_aval get_dma_slice
    get_indexer_shape get_indexer_shape_static get_ref_aval get_referent getter grid
    grid_names group groups has_allocated_buffer has_indirect has_qdd has_side_effects
    hbm_capacity_bytes hex identity iexp imag in_buffer_count in_specs inc_rank index
    index_map indices init init_slots initialize_slots inner_aval input input_output insert
    int4_ops_per_second int8_ops_per_second int_indexer_shape internal_scratch_in_bytes
    is_accumulator is_buffered is_dynamic_size is_dynamic_start is_high is_input
    is_input_output is_integer is_manual is_multi_process is_output is_ref is_remote
    is_trivial_windowing isalignedstruct isalnum isalpha isascii isdecimal isdigit
    isidentifier islower isnative isnumeric isprintable isspace istitle isupper item items
    itemsize join kernel_type key keys keywords kind leading_axis_spec like limit_denominator
    ljust lo_ty lo_ty_qdd load_slots lower lower_val lower_val2 lowering_semantics lstrip mT machep
    make_trivial_indexer maketrans max max_concurrent_steps maxexp maxlen mean
    mem_bw_bytes_per_second memory_space memory_space_cast min minexp most_common mul multiply
    multiref mxu_column_size name names nargs nbytes ndim needs_layout_passes negep nexp
    next_fetch next_fetch_indices next_fetch_smem next_fetch_sreg nin nmant nonzero normalize
    nospec nout ntypes num num_accumulators num_arrivals num_barriers num_cores num_lanes
    num_leaves num_mxus num_nodes num_scalar_prefetch num_sublanes numerator opt_level
    orders_tensor_core out_buffer_count out_specs outer output output_wait_read_only partition
    pipeline_mode pop popitem popleft power precision prefetched_count pretty_print prod
    profile_bounds_check profile_dir profile_space profile_trace_scope ptp put raise_val
    raise_val2 ravel real reduce reduceat reduction_scratch_bytes ref ref_or_view
    register_static remote_bytes_transferred remove removeprefix removesuffix repeat replace
    reshape reshard resolution resolve_dtypes reverse rfind rindex rjust rotate round
    rpartition rsplit rstrip save_slots scratch_shapes searchsorted sem_recvs sem_sends
    serialization_format set set_accumulator setdefault setter shape shape_invariant_numerics
    shard signature size skip_device_barrier smallest_normal smallest_subnormal
    smem_capacity_bytes sort span sparse_core spec split splitlines squeeze src_ref src_sem
    src_sem_transforms src_transforms start startswith std step stop str str_short stride
    strides strip strip_weak_type subdtype subtract sum swap swapaxes swapcase swizzle
    symbolic_zeros take tiling tiny title to_block_mapping to_bytes to_concrete_value
    to_ct_aval to_device to_json to_tangent_aval tobytes tolist total transcendentals
    transform_array transform_type transforms translate transpose tree_flatten tree_unflatten
    type types unbind_refs undo unflatten unsafe_no_auto_barriers unshard update
    update_manual_axis_type update_unreduced_reduced update_vma update_weak_type upper
    use_lookahead use_tc_tiling_on_sc validate value values var view vmem_capacity_bytes
    vmem_limit_bytes vspace_add wait wait_in wait_in_slot wait_out wait_out_slot
    wait_out_write wait_read wait_recv wait_send wait_write walk weak_type window_ref
    with_next_fetch with_slot_index with_spec with_window_ref zfill
"""

# The special attributes that code may read. `__doc__` and the names are read with their owners.
SPECIAL_ATTRIBUTES = """
    __abs__ __add__ __and__ __bool__ __call__ __class__ __contains__ __doc__ __enter__ __eq__
    __exit__ __float__ __floordiv__ __ge__ __getitem__ __gt__ __iadd__ __iand__ __imul__
    __index__ __init__ __init_subclass__ __int__ __invert__ __ior__ __isub__ __iter__ __le__
    __len__ __lshift__ __lt__ __matmul__ __mod__ __module__ __mul__ __name__ __ne__ __neg__
    __new__ __next__ __or__ __pos__ __post_init__ __pow__ __qualname__ __radd__ __rand__
    __rmatmul__ __rmul__ __ror__ __rshift__ __rsub__ __rtruediv__ __rxor__ __set_name__
    __setattr__ __setitem__ __sub__ __truediv__ __xor__
"""
