r"""The chat templates that the original Text-to-LoRA trains with, in place of the base models' own.

It gives every prompt a system turn, which is empty for all of its training tasks, and its templates add no text to it.
For the base models of the paper, with the user's text u (each \n is a line's end):

    Mistral-7B-Instruct     <s> [INST] \n\nu [/INST]
    Llama-3.1-8B-Instruct   <|begin_of_text|>, then <|start_header_id|>role<|end_header_id|>\n\nu<|eot_id|> of system
                            and user, and the assistant's header; its own template adds dates to the system turn
    gemma-2-2b-it           <bos>, then <start_of_turn>role\nu<end_of_turn>\n of system and user, and the beginning of
                            the model's turn; its own template refuses a system turn

The original supervises an answer with its header, whose tokens are always the same; here they end the prompt.
Written from the code that calls them; the spaces of Mistral's are those of its own template, the only other source.
"""

_MISTRAL = """\
{%- set system = messages[0].role == 'system' -%}
{%- set turns = messages[1:] if system else messages -%}
{{ bos_token }}
{%- for turn in turns -%}
{%- if turn.role == 'user' -%}
{{ ' [INST] ' + (messages[0].content + '\\n\\n' if system and loop.first else '') + turn.content + ' [/INST]' }}
{%- else -%}
{{ ' ' + turn.content + eos_token }}
{%- endif -%}
{%- endfor -%}
"""
_LLAMA = """\
{{ bos_token }}
{%- for turn in messages -%}
{{ '<|start_header_id|>' + turn.role + '<|end_header_id|>\\n\\n' + turn.content + '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif -%}
"""
_GEMMA = """\
{{ bos_token }}
{%- for turn in messages -%}
{{ '<start_of_turn>' + ('model' if turn.role == 'assistant' else turn.role) + '\\n' }}
{{- turn.content + '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<start_of_turn>model\\n' }}
{%- endif -%}
"""
# Beginning of a base model's name, after the organisation -> template.
TEMPLATES = {
    "mistral-7b-instruct": _MISTRAL,
    "llama-3.1-8b-instruct": _LLAMA,
    "meta-llama-3.1-8b-instruct": _LLAMA,
    "gemma-2-2b-it": _GEMMA,
}


def template_for(base_name: str) -> str | None:
    """The template of a base model, by its name; None where it is not known."""
    name = base_name.rpartition("/")[2].lower()
    return next((template for start, template in TEMPLATES.items() if name.startswith(start)), None)
