# The first stages of the quickstart, for the scripts that begin with them; to be sourced from the
# repository's root.
#
#   cache       real weights, pictures and questions (LLAVA_COMPETE_CACHE)
#   quickstart  where the stages leave their results; set by the caller

cache=${LLAVA_COMPETE_CACHE:-$HOME/.cache/llava_compete/quickstart}
# Two processes on the CPU, also where there is a GPU, each with half of the cores.
export CUDA_VISIBLE_DEVICES="" DS_ACCELERATOR=cpu TOKENIZERS_PARALLELISM=false
export OMP_NUM_THREADS=$(($(nproc) > 2 ? $(nproc) / 2 : 1))

stage() { # stage RESULT TITLE COMMAND...: run COMMAND unless RESULT is there
  local result=$1 title=$2
  shift 2
  if [[ -e $result ]]; then
    echo "== $title: done before ($result)"
    return
  fi
  echo "== $title"
  local start=$SECONDS
  "$@"
  echo "== $title: $((SECONDS - start)) s"
}

train() { # train RECIPE KEY VALUE...: two processes; what is left of an interrupted run goes
  local recipe=$1 output=$2
  shift 2
  rm -rf "$output" "$quickstart/eval" # answers of another model
  NUM_PROCESSES=2 bash scripts/train.sh "$recipe" --output_dir "$output" \
    --image_folder "$cache" "$@"
}

prepare_data() {
  echo "== real weights, pictures and questions, in $cache"
  python -m data_prep quickstart --root "$cache" --pictures "${PICTURES:-auto}"
}

aligned_model() { # a dense model, and its projector aligned: $quickstart/dense, $quickstart/aligned
  mkdir -p "$quickstart"
  stage "$quickstart/dense" "compose" llava-compete compose --output "$quickstart/dense" \
    --language_model "$cache/SmolLM2-135M-Instruct" \
    --vision timm/tf_efficientnet_lite0 --vision_weights "$cache/tf_efficientnet_lite0.safetensors" \
    --vision_layer final --image_size 160 \
    --calibration_data "$cache/align.json" --image_folder "$cache"

  stage "$quickstart/aligned/train_results.json" "align the projector" \
    train scripts/recipes/quickstart_align.yaml "$quickstart/aligned" \
    --checkpoint "$quickstart/dense" --data_path "$cache/align.json"
}

upcycled_model() { # upcycled_model OUTPUT [FLAG...]: 10 of the 30 decoder layers become experts
  local output=$1
  shift
  stage "$output" "upcycle into experts" llava-compete upcycle "$quickstart/aligned" \
    --output "$output" --layers 2 5 8 11 14 17 20 23 26 29 --perturbation 0.02 "$@"
}
